"""A process that compiles grammars: a JSON request a line on standard input, a JSON answer a line on standard output.

    python -m swarm_model.grammar_worker TOKENIZER_JSON VOCABULARY_SIZE STOP_ID[,STOP_ID...]

Its first line tells the vocabulary: {"info", "special_ids", "control_ids"}. Then {"kind", "text"} is answered with
{"compiled"} or {"refused"}. A process of its own, because a grammar comes from strangers: one that takes for ever is
killed, one that takes all memory or crashes the compiler ends nothing else. Started by the node (`grammar_compiler.py`)
with the first grammar that is asked for; ends when its standard input does.
"""

import json
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psutil
import xgrammar
from transformers import PreTrainedTokenizerFast

MAX_MEMORY_BYTES = 1 << 30  # of a compilation


def main(arguments: list[str]) -> None:
    """Answer requests until standard input ends."""
    tokenizer_file, size, stops = arguments
    stop_ids = [int(stop) for stop in stops.split(",")]
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer_file)
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=int(size), stop_token_ids=stop_ids)
    special_ids = [
        token for token, added in tokenizer.added_tokens_decoder.items() if added.special and token < int(size)
    ]
    control_ids = [token for token, text in enumerate(info.decoded_vocab) if any(byte < ord(" ") for byte in text)]
    compiler = xgrammar.GrammarCompiler(info, max_threads=1, cache_enabled=False)
    compile_kinds: dict[str, Callable[[str], Any]] = {
        # Spaces as json.dumps writes them: a model that may write any number of them sometimes does nothing else.
        "json_schema": lambda text: compiler.compile_json_schema(text, any_whitespace=False),
        "regex": compiler.compile_regex,
        "ebnf": compiler.compile_grammar,
    }
    _answer({"info": info.serialize_json(), "special_ids": special_ids, "control_ids": control_ids})
    _limit_memory()
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = {"compiled": compile_kinds[request["kind"]](request["text"]).serialize_json()}
        except (RuntimeError, ValueError, MemoryError) as error:
            answer = {"refused": _reason(error)}
        _answer(answer)


def _answer(message: dict[str, Any]) -> None:
    print(json.dumps(message), flush=True)


def _reason(error: Exception) -> str:
    """Return the compiler's words without its source file and time: `[12:00:00] /path/file.cc:83: Unclosed '['`."""
    text = " ".join(str(error).split())
    return (text.split(": ", 1)[1] if text.startswith("[") and ": " in text else text)[:500] or type(error).__name__


def _limit_memory() -> None:
    with suppress(ImportError):  # not made for this system
        import resource

        limit = psutil.Process().memory_info().data + MAX_MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


if __name__ == "__main__":
    main(sys.argv[1:])
