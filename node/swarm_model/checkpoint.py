"""A checkpoint as it lies on disk or on the Hugging Face hub: its configuration, its tensor index, its files.

Owns where files are and which are fetched: opening a hub checkpoint takes configuration, tokenizer and index alone,
`fetch` takes the shards that a span needs. Knows nothing of torch; `config` imports transformers when it is first asked
for. Nothing here runs code from a checkpoint. Called by the node before and while a span is loaded.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from huggingface_hub import hf_hub_download, parse_safetensors_file_metadata, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)

from swarm_model.errors import CheckpointBroken, CheckpointNotFound, ConfigMissing, UnsupportedModel
from swarm_model.tensor_files import TensorInfo, read_tensor_infos

SINGLE_FILE: Final = "model.safetensors"
INDEX_FILE: Final = "model.safetensors.index.json"
SMALL_FILES: Final = ["*.json", "*.model", "*.txt", "*.jinja"]  # configuration, tokenizer, index; never weights
HUB_ID: Final = re.compile(r"[\w.-]+(/[\w.-]+)?")
MAX_BLOCKS: Final = 4096

FetchProgress = Callable[[int, int], None]  # files here, files wanted


class Checkpoint:
    """One model's files; make it with `open`."""

    def __init__(self, directory: Path, *, source: str, commit: str | None, cache_dir: Path | None) -> None:
        self.directory = directory
        self.source = source
        self._commit = commit
        self._cache_dir = cache_dir

    @classmethod
    def open(
        cls, source: str | Path, *, revision: str | None = None, cache_dir: str | Path | None = None
    ) -> "Checkpoint":
        """Open a local folder or a Hugging Face id; of the latter only the small files are fetched.

        Raises CheckpointNotFound, ConfigMissing, CheckpointBroken.
        """
        directory = Path(source).expanduser()
        if directory.is_dir():
            checkpoint = cls(directory.resolve(), source=str(source), commit=None, cache_dir=None)
        elif HUB_ID.fullmatch(str(source)) and not directory.exists():
            cache = None if cache_dir is None else Path(cache_dir)
            snapshot = _fetch_small_files(str(source), revision, cache)
            checkpoint = cls(snapshot, source=str(source), commit=snapshot.name, cache_dir=cache)
        else:
            raise CheckpointNotFound(str(source), "no such folder")
        if not (checkpoint.directory / "config.json").is_file():
            raise ConfigMissing(str(checkpoint.directory))
        checkpoint.raw_config  # noqa: B018  a broken configuration is reported here, not in the middle of loading
        return checkpoint

    @property
    def name(self) -> str:
        """What people call the model: its id on the hub, or its folder's name."""
        return self.source if self._commit is not None else self.directory.name

    @property
    def commit(self) -> str:
        """The hub's commit, empty for a local folder."""
        return self._commit or ""

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
    def num_blocks(self) -> int:
        blocks = getattr(self._text_config, "num_hidden_layers", None)
        if not isinstance(blocks, int) or not 1 <= blocks <= MAX_BLOCKS:
            raise CheckpointBroken("config.json", f"num_hidden_layers is {blocks!r}, not 1 to {MAX_BLOCKS}")
        return blocks

    @property
    def max_position(self) -> int:
        """The most tokens that a session of this model can hold."""
        longest = int(getattr(self._text_config, "max_position_embeddings", 0) or 0)
        if longest < 1:
            raise CheckpointBroken("config.json", "max_position_embeddings is missing")
        return longest

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
        if self._commit is None and not (self.directory / SINGLE_FILE).is_file():
            if any(self.directory.glob("*.bin")):
                raise UnsupportedModel(self.family, "its weights are pickled, only safetensors files are read")
            raise CheckpointBroken(SINGLE_FILE, f"neither it nor {INDEX_FILE} is in {self.directory}")
        return dict.fromkeys(self._file_tensors(SINGLE_FILE), SINGLE_FILE)

    @cached_property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor's type, shape and place, from the headers alone, local or on the hub."""
        found = {name: info for file in sorted(set(self.weight_map.values())) for name, info in self._headers(file)}
        for name, file in self.weight_map.items():
            if name not in found or found[name].file != file:
                raise CheckpointBroken(file, f"{name} is missing, which {INDEX_FILE} promises")
        return found

    @cached_property
    def revision(self) -> str:
        """What pins the files: the hub's commit, or a digest of configuration, tokenizer and tensor names."""
        if self._commit is not None:
            return self._commit
        digest = hashlib.sha256()
        for name in ("config.json", "tokenizer.json"):
            path = self.directory / name
            content = path.read_bytes() if path.is_file() else b""
            digest.update(hashlib.sha256(content).digest())
        digest.update("\n".join(sorted(self.weight_map)).encode())
        return "sha256-" + digest.hexdigest()[:40]

    def fetch(self, files: Iterable[str], on_progress: FetchProgress | None = None) -> None:
        """See that these files of the weight map are on this disk; `on_progress` gets files here and files wanted.

        Raises CheckpointNotFound if the hub does not give them, CheckpointBroken if a local folder lacks one.
        """
        wanted = sorted(set(files))
        for number, file in enumerate(wanted):
            if on_progress is not None:
                on_progress(number, len(wanted))
            if (self.directory / file).is_file():
                continue
            if self._commit is None:
                raise CheckpointBroken(file, f"it is missing from {self.directory}")
            try:
                hf_hub_download(self.source, file, revision=self._commit, cache_dir=self._cache_dir)
            except (OSError, EntryNotFoundError) as error:
                raise CheckpointNotFound(self.source, f"{file} could not be fetched: {_first_line(error)}") from error
        if on_progress is not None:
            on_progress(len(wanted), len(wanted))

    @property
    def _text_config(self) -> Any:
        return self.config.get_text_config()

    def _headers(self, file: str) -> Iterable[tuple[str, TensorInfo]]:
        return self._file_tensors(file).items()

    def _file_tensors(self, file: str) -> dict[str, TensorInfo]:
        path = self.directory / file
        if path.is_file() or self._commit is None:
            return read_tensor_infos(path)
        try:
            header = parse_safetensors_file_metadata(self.source, file, revision=self._commit)
        except (OSError, EntryNotFoundError) as error:
            reason = f"no {file} there: only safetensors weights are read ({_first_line(error)})"
            raise CheckpointNotFound(self.source, reason) from error
        return {
            name: TensorInfo(name, file, info.dtype, tuple(info.shape), *info.data_offsets)
            for name, info in header.tensors.items()
        }


def _fetch_small_files(source: str, revision: str | None, cache_dir: Path | None) -> Path:
    try:
        return Path(snapshot_download(source, revision=revision, cache_dir=cache_dir, allow_patterns=SMALL_FILES))
    except GatedRepoError as error:
        raise CheckpointNotFound(source, "its owner wants you to log in and accept terms: `hf auth login`") from error
    except RevisionNotFoundError as error:
        raise CheckpointNotFound(source, f"it has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointNotFound(source, "no such folder, and no such repository on the hub") from error
    except LocalEntryNotFoundError as error:
        raise CheckpointNotFound(source, "no such folder, not in the cache, and the hub is out of reach") from error
    except (OSError, HFValidationError) as error:
        raise CheckpointNotFound(source, _first_line(error)) from error


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
