"""A checkpoint as it lies on disk or on the Hugging Face hub: its configuration, its tensor index, its files.

Owns where files are and which are fetched: opening a hub checkpoint takes configuration, tokenizer and index alone,
`fetch` takes the shards that a span needs; hub.py does the talking. Knows nothing of torch; `config` imports
transformers when it is first asked for. Nothing here runs code from a checkpoint. Called by the node before and while a
span is loaded.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from huggingface_hub.errors import StrictDataclassError

from swarm_model.errors import CheckpointBroken, CheckpointNotFound, ConfigMissing, UnsupportedModel
from swarm_model.hub import HubFiles
from swarm_model.tensor_files import TensorInfo, read_tensor_infos

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAX_BLOCKS: Final = 4096
POSITION_LIMITS: Final = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
UNLIMITED_TOKENS: Final = 1 << 16  # of a session, where a model sets no limit: some number bounds the bookkeeping

FetchProgress = Callable[[int, int], None]  # bytes downloaded, bytes to download


class Checkpoint:
    """One model's files; make it with `open`."""

    def __init__(self, directory: Path, *, source: str, hub: HubFiles | None) -> None:
        self.directory = directory
        self.source = source
        self._hub = hub

    @classmethod
    def open(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
    ) -> "Checkpoint":
        """Open a local folder or a Hugging Face id; of the latter only the small files are fetched.

        `cache_dir` and `endpoint` are the library's own unless given: HF_HOME and HF_ENDPOINT set them. Raises
        CheckpointNotFound, AccessDenied, HubUnreachable, ConfigMissing, CheckpointBroken.
        """
        directory = Path(source).expanduser()
        if directory.is_dir():
            checkpoint = cls(directory.resolve(), source=str(source), hub=None)
        elif HUB_ID.fullmatch(str(source)) and not directory.exists():
            cache = None if cache_dir is None else Path(cache_dir)
            hub = HubFiles.open(str(source), revision, cache, endpoint)
            checkpoint = cls(hub.directory, source=str(source), hub=hub)
        else:
            raise CheckpointNotFound(str(source), "no such folder")
        if not (checkpoint.directory / "config.json").is_file():
            raise ConfigMissing(str(checkpoint.directory))
        checkpoint.raw_config  # noqa: B018  a broken configuration is reported here, not in the middle of loading
        return checkpoint

    @property
    def name(self) -> str:
        """What people call the model: its id on the hub, or its folder's name."""
        return self.source if self._hub is not None else self.directory.name

    @property
    def commit(self) -> str:
        """The hub's commit, empty for a local folder."""
        return self._hub.commit if self._hub is not None else ""

    @cached_property
    def raw_config(self) -> dict[str, Any]:
        """config.json as it stands."""
        return _read_json(self.directory / "config.json")

    @cached_property
    def config(self) -> Any:
        """The transformers configuration. Raises UnsupportedModel for a family that transformers does not have."""
        from transformers import AutoConfig

        try:
            return AutoConfig.from_pretrained(self.directory, trust_remote_code=False)
        except StrictDataclassError as error:
            raise CheckpointBroken("config.json", " ".join(str(error).split())) from error
        except (ValueError, KeyError) as error:
            raise UnsupportedModel(self.family, _first_line(error)) from error
        except (TypeError, AttributeError, OSError) as error:
            raise CheckpointBroken("config.json", str(error)) from error

    @property
    def family(self) -> str:
        """The model type, as config.json names it."""
        return str(self.raw_config.get("model_type", "unknown"))

    @property
    def quantization(self) -> dict[str, Any] | None:
        """How the weights are quantized, as config.json says; None if they are not. Raises CheckpointBroken."""
        text = self.raw_config.get("text_config")
        found = self.raw_config.get("quantization_config")
        if found is None and isinstance(text, dict):
            found = text.get("quantization_config")
        if found is not None and not isinstance(found, dict):
            raise CheckpointBroken("config.json", "its quantization_config is not an object")
        return found

    @property
    def num_blocks(self) -> int:
        blocks = getattr(self._text_config, "num_hidden_layers", None)
        if not isinstance(blocks, int) or not 1 <= blocks <= MAX_BLOCKS:
            raise CheckpointBroken("config.json", f"num_hidden_layers is {blocks!r}, not 1 to {MAX_BLOCKS}")
        return blocks

    @property
    def max_position(self) -> int:
        """The most tokens that a session of this model can hold; linear biases and running states set no limit."""
        for name in POSITION_LIMITS:
            if (longest := getattr(self._text_config, name, None)) is not None:
                if not isinstance(longest, int) or longest < 1:
                    raise CheckpointBroken("config.json", f"{name} is {longest!r}")
                return longest
        return UNLIMITED_TOKENS

    @cached_property
    def weight_map(self) -> dict[str, str]:
        """Which file holds which tensor. Raises CheckpointBroken, UnsupportedModel."""
        index = self.directory / INDEX_FILE
        if index.is_file():
            names = _read_json(index).get("weight_map")
            if not isinstance(names, dict) or not names:
                raise CheckpointBroken(INDEX_FILE, "it has no weight_map")
            for file in names.values():
                if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.safetensors", file):
                    raise CheckpointBroken(INDEX_FILE, f"{file!r} is not the name of a safetensors file")
            return dict(names)
        if self._hub is None and not (self.directory / SINGLE_FILE).is_file():
            if any(self.directory.glob("*.bin")):
                raise UnsupportedModel(self.family, "its weights are pickled, only safetensors files are read")
            raise CheckpointBroken(SINGLE_FILE, f"neither it nor {INDEX_FILE} is in {self.directory}")
        return dict.fromkeys(self._file_tensors([SINGLE_FILE])[SINGLE_FILE], SINGLE_FILE)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's type, shape and place, from the headers alone, local or on the hub."""
        files = self._file_tensors(sorted(set(self.weight_map.values())))
        found = {name: info for tensors in files.values() for name, info in tensors.items()}
        for name, file in self.weight_map.items():
            if name not in found or found[name].file != file:
                raise CheckpointBroken(file, f"{name} is missing, which {INDEX_FILE} promises")
        return found

    @cached_property
    def revision(self) -> str:
        """What pins the files: the hub's commit, or a digest of configuration, tokenizer and tensor names."""
        if self._hub is not None:
            return self._hub.commit
        digest = hashlib.sha256()
        for name in ("config.json", "tokenizer.json"):
            path = self.directory / name
            content = path.read_bytes() if path.is_file() else b""
            digest.update(hashlib.sha256(content).digest())
        digest.update("\n".join(sorted(self.weight_map)).encode())
        return "sha256-" + digest.hexdigest()[:40]

    def fetch(self, files: Iterable[str], on_progress: FetchProgress | None = None) -> None:
        """See that these files of the weight map are on this disk; a local folder's are, and are never copied.

        Raises CheckpointBroken if a local folder lacks one, and what HubFiles.fetch raises.
        """
        wanted = sorted(set(files))
        if self._hub is not None:
            total, done = sum(self.file_bytes(file) for file in wanted if not self.has(file)), 0

            def count(size: int) -> None:
                nonlocal done
                done += size
                if on_progress is not None:
                    on_progress(done, total)

            self._hub.fetch(wanted, count)
        for file in wanted:
            if not self.has(file):
                raise CheckpointBroken(file, f"it is missing from {self.directory}")

    def has(self, file: str) -> bool:
        """Whether a file is on this disk."""
        return (self.directory / file).is_file()

    def missing_bytes(self, files: Iterable[str]) -> int:
        """Count what `fetch` would download; nothing, of a local folder. Raises what HubFiles.fetch raises."""
        return 0 if self._hub is None else self._hub.missing_bytes(files)

    @property
    def _text_config(self) -> Any:
        return self.config.get_text_config()

    def file_bytes(self, file: str) -> int:
        """How large a file of the weight map is, as its header says."""
        return max(tensor.end for tensor in self.tensors.values() if tensor.file == file)

    def _file_tensors(self, files: Iterable[str]) -> dict[str, dict[str, TensorInfo]]:
        here, elsewhere = {}, []
        for file in files:
            if self._hub is None or self.has(file):
                here[file] = read_tensor_infos(self.directory / file)
            else:
                elsewhere.append(file)
        return here | (self._hub.tensors(elsewhere) if self._hub is not None and elsewhere else {})


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointBroken(path.name, f"not readable as JSON: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointBroken(path.name, "it does not hold a JSON object")
    return content


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
