"""The other side of the comparison: transformers' `generate` in a process of its own, one thread, on request.

Started by `decode.py` as `python reference.py CHECKPOINT DTYPE`; answers each JSON line on standard input with one on
standard output: `{"batch", "prompt", "new"}` with times, `{"weigh": true}` with what a block and the head take.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

WARM_UP_TOKENS = 4


class Reference:
    """The process, as a context manager."""

    def __init__(self, checkpoint: Path, dtype: str) -> None:
        self._command = [sys.executable, __file__, str(checkpoint), dtype]

    def __enter__(self) -> Self:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.ask({"batch": 1, "prompt": 16, "new": WARM_UP_TOKENS})
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.stdin.close()
        self._process.wait(30)

    def ask(self, question: dict[str, Any]) -> dict[str, float]:
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer: dict[str, float] = json.loads(self._process.stdout.readline())
        return answer

    def generate(self, batch: int, prompt: int, new: int) -> tuple[float, float]:
        """Return seconds to the first token, and tokens a second of all sequences behind it."""
        answer = self.ask({"batch": batch, "prompt": prompt, "new": new})
        return answer["first_s"], batch * (new - 1) / (answer["total_s"] - answer["first_s"])


def _serve(checkpoint: str, dtype: str) -> None:
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.generation.streamers import BaseStreamer

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=getattr(torch, dtype)).eval()

    class Stamps(BaseStreamer):
        def __init__(self) -> None:
            self.at_s: list[float] = []

        def put(self, value: Any) -> None:
            self.at_s.append(time.perf_counter())

        def end(self) -> None:
            pass

    def generate(batch: int, prompt: int, new: int) -> dict[str, float]:
        ids = torch.randint(3, model.config.vocab_size, (batch, prompt))
        stamps, started_s = Stamps(), time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=new,
                min_new_tokens=new,
                do_sample=False,
                streamer=stamps,
                pad_token_id=0,
            )
        return {"first_s": stamps.at_s[1] - started_s, "total_s": stamps.at_s[-1] - started_s}

    def weigh() -> dict[str, float]:
        """Time one block and the head on one token."""
        blocks: list[float] = []
        head: list[float] = []
        starts: dict[int, float] = {}

        def before(module: Any, _: Any) -> None:
            starts[id(module)] = time.perf_counter()

        def after(kept: list[float]) -> Any:
            return lambda module, _, __: kept.append(time.perf_counter() - starts[id(module)])

        handles = [model.lm_head.register_forward_pre_hook(before), model.lm_head.register_forward_hook(after(head))]
        for layer in model.model.layers:
            handles += [layer.register_forward_pre_hook(before), layer.register_forward_hook(after(blocks))]
        generate(1, 128, 24)
        for handle in handles:
            handle.remove()
        skip = len(model.model.layers)
        return {"block_s": statistics.median(blocks[skip:]), "head_s": statistics.median(head[1:])}

    for line in sys.stdin:
        question = json.loads(line)
        answer = weigh() if question.get("weigh") else generate(**question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    _serve(*sys.argv[1:])
