"""Everything that can go wrong between a checkpoint and a token, and what the person who meets it should do.

    ModelError
    ├── loading
    │   ├── CheckpointNotFound      no such folder or Hugging Face id
    │   ├── AccessDenied            a gated repository, or a token that the hub does not accept
    │   ├── HubUnreachable          offline, no network, or the hub is down
    │   ├── DownloadInterrupted     the connection broke; what was received is kept
    │   ├── NotEnoughDisk           names the span whose files would fit
    │   ├── ConfigMissing           a folder without config.json
    │   ├── CheckpointBroken        a file that cannot be trusted                 fetch it again
    │   ├── UnsupportedModel        we would compute something else than transformers
    │   ├── QuantizationUnavailable a quantized checkpoint whose scheme this machine cannot load
    │   ├── FormatUnavailable       a format to quantize into that this device or model does not take
    │   ├── SpanOutsideModel        the model has no such blocks
    │   ├── NotEnoughMemory         names the span that would fit
    │   ├── KVPoolTooSmall          not one page fits into the KV memory asked for
    │   └── WrongTransformers       a version that was never tried
    └── a chunk of a session
        ├── KVFull                  no pages for this chunk                       retry elsewhere
        ├── SessionsFull            no room for another session's state           retry elsewhere
        ├── RewindImpossible        a running state cannot go back that far       replay from position 0
        ├── PositionGap             tokens before the chunk are missing here      replay them
        ├── ContextTooLong          more tokens than the model can hold
        ├── InvalidChunk            inputs of a wrong shape, type or value
        ├── InvalidActivations      activations that cannot be sent, or were not what they should be
        ├── LogitsNotFinite         the model gave no numbers to choose by
        ├── OutsideGrammar          a grammar that is none, or that the answer does not match
        └── InvalidSampling         a sampling parameter out of its range

`code` crosses the wire with the fields and is never reused. Leaves are ordinary dataclasses, not frozen ones:
contextlib assigns `__traceback__`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


def gib(size_bytes: int) -> str:
    """Write a size for people: `1.5 GiB`, `3.2 MiB`."""
    if size_bytes >= 1 << 30:
        return f"{size_bytes / (1 << 30):.1f} GiB"
    return f"{size_bytes / (1 << 20):.1f} MiB"


class ModelError(Exception, ABC):
    """A failure that a user, an operator or a client can understand and act on."""

    code: ClassVar[str] = "model_error"
    retry_elsewhere: ClassVar[bool] = False

    @abstractmethod
    def remedy(self) -> str:
        """Say in one sentence what the reader can do about it."""


@dataclass(eq=False)
class CheckpointNotFound(ModelError):
    """Neither a folder nor a repository on the Hugging Face hub that can be reached."""

    source: str
    reason: str

    code: ClassVar[str] = "checkpoint_not_found"

    def __str__(self) -> str:
        return f"no checkpoint at {self.source!r}: {self.reason}"

    def remedy(self) -> str:
        return (
            "give a folder with config.json and safetensors files, or an id such as Qwen/Qwen3-0.6B; check the network"
        )


@dataclass(eq=False)
class AccessDenied(ModelError):
    """The hub has the repository, but not for whoever asks."""

    source: str
    reason: str

    code: ClassVar[str] = "access_denied"

    def __str__(self) -> str:
        return f"no access to {self.source}: {self.reason}"

    def remedy(self) -> str:
        return (
            f"accept the terms on the hub's page of {self.source}, make a token that may read it and set HF_TOKEN "
            "(or run `hf auth login`)"
        )


@dataclass(eq=False)
class HubUnreachable(ModelError):
    """The hub does not answer, and what is asked for is not in the cache."""

    source: str
    reason: str

    code: ClassVar[str] = "hub_unreachable"

    def __str__(self) -> str:
        return f"{self.source} is no folder here, not whole in the cache, and the hub is out of reach: {self.reason}"

    def remedy(self) -> str:
        return (
            "check the network, HF_ENDPOINT and HF_HUB_OFFLINE and start again, or give --model a folder that "
            "`hf download` made elsewhere"
        )


@dataclass(eq=False)
class DownloadInterrupted(ModelError):
    """The connection to the hub broke again and again."""

    source: str
    file: str
    done_bytes: int
    total_bytes: int
    reason: str

    code: ClassVar[str] = "download_interrupted"

    def __str__(self) -> str:
        progress = f"{gib(self.done_bytes)} of {gib(self.total_bytes)}"
        return f"the download of {self.file} from {self.source} stopped at {progress}: {self.reason}"

    def remedy(self) -> str:
        return "start again: the download goes on where it stopped"


@dataclass(eq=False)
class NotEnoughDisk(ModelError):
    """The span's files do not fit on the disk; `fits` is the widest span from the same start whose files do."""

    span: tuple[int, int]
    needed_bytes: int
    free_bytes: int
    path: str
    fits: tuple[int, int] | None

    code: ClassVar[str] = "not_enough_disk"

    def __str__(self) -> str:
        needed = f"{self.needed_bytes} bytes ({gib(self.needed_bytes)}) are still to be downloaded"
        free = f"{self.free_bytes} bytes ({gib(self.free_bytes)}) are free in {self.path}"
        return f"for blocks {self.span[0]}:{self.span[1]} {needed}, {free}"

    def remedy(self) -> str:
        smaller = "" if self.fits is None else f"serve --blocks {self.fits[0]}:{self.fits[1]}, or "
        return f"{smaller}set HF_HOME to a folder on a larger disk, or free space in {self.path}"


@dataclass(eq=False)
class ConfigMissing(ModelError):
    """A folder that holds no config.json."""

    directory: str

    code: ClassVar[str] = "config_missing"

    def __str__(self) -> str:
        return f"{self.directory} holds no config.json"

    def remedy(self) -> str:
        return "point --model at the folder that save_pretrained or `hf download` made"


@dataclass(eq=False)
class CheckpointBroken(ModelError):
    """A file does not hold what its name, header or index promises."""

    file: str
    reason: str

    code: ClassVar[str] = "checkpoint_broken"

    def __str__(self) -> str:
        return f"{self.file}: {self.reason}"

    def remedy(self) -> str:
        return f"delete {self.file} and fetch it again"


@dataclass(eq=False)
class UnsupportedModel(ModelError):
    """This family, or this checkpoint's form, would not give the numbers that transformers gives."""

    family: str
    reason: str

    code: ClassVar[str] = "unsupported_model"

    def __str__(self) -> str:
        return f"models of type {self.family!r} cannot be served: {self.reason}"

    def remedy(self) -> str:
        return "serve another model, or report the family so that support can be added"


@dataclass(eq=False)
class QuantizationUnavailable(ModelError):
    """The checkpoint is quantized in a way for which a package or a device is missing here."""

    scheme: str
    reason: str
    packages: tuple[str, ...]  # for pip; empty where none would help

    code: ClassVar[str] = "quantization_unavailable"

    def __str__(self) -> str:
        return f"the checkpoint is quantized ({self.scheme}) and cannot be loaded here: {self.reason}"

    def remedy(self) -> str:
        install = f"pip install {' '.join(self.packages)}, or " if self.packages else ""
        return f"{install}serve a checkpoint of this model that is not quantized, or quantized in another way"


@dataclass(eq=False)
class FormatUnavailable(ModelError):
    """The span cannot be quantized into the format asked for, here or at all."""

    quantization: str
    reason: str
    instead: str  # what to do

    code: ClassVar[str] = "format_unavailable"

    def __str__(self) -> str:
        return f"--quantize {self.quantization}: {self.reason}"

    def remedy(self) -> str:
        return self.instead


@dataclass(eq=False)
class SpanOutsideModel(ModelError):
    """The blocks asked for are not all in the model."""

    asked: tuple[int, int]
    blocks: int

    code: ClassVar[str] = "span_outside_model"

    def __str__(self) -> str:
        return f"blocks {self.asked[0]}:{self.asked[1]} asked, the model has 0:{self.blocks}"

    def remedy(self) -> str:
        return f"choose START:END with 0 <= START < END <= {self.blocks}"


@dataclass(eq=False)
class NotEnoughMemory(ModelError):
    """The span's weights and its KV pool do not fit; `fits` is the widest span from the same start that does."""

    span: tuple[int, int]
    needed_bytes: int
    available_bytes: int
    fits: tuple[int, int] | None

    code: ClassVar[str] = "not_enough_memory"

    def __str__(self) -> str:
        asked = f"blocks {self.span[0]}:{self.span[1]} with their KV pool need {gib(self.needed_bytes)}"
        return f"{asked}, {gib(self.available_bytes)} are available"

    def remedy(self) -> str:
        if self.fits is None:
            return "not one block fits: lower --kv-memory, choose a smaller dtype, or use a machine with more memory"
        return f"serve --blocks {self.fits[0]}:{self.fits[1]}, lower --kv-memory, or choose a smaller dtype"


@dataclass(eq=False)
class KVPoolTooSmall(ModelError):
    """The KV memory asked for does not hold one page."""

    kv_bytes: int
    page_bytes: int

    code: ClassVar[str] = "kv_pool_too_small"

    def __str__(self) -> str:
        return f"one KV page of this span takes {self.page_bytes} bytes, {self.kv_bytes} were given"

    def remedy(self) -> str:
        return f"raise --kv-memory above {gib(self.page_bytes)}; a useful pool holds hundreds of pages"


@dataclass(eq=False)
class WrongTransformers(ModelError):
    """The installed transformers is outside the range that was tried."""

    found: str
    wanted: str

    code: ClassVar[str] = "wrong_transformers"

    def __str__(self) -> str:
        return f"transformers {self.found} is installed, {self.wanted} is needed"

    def remedy(self) -> str:
        return f"pip install 'transformers{self.wanted}'"


@dataclass(eq=False)
class KVFull(ModelError):
    """The pool has no free KV pages for this chunk."""

    pages_needed: int
    pages_free: int

    code: ClassVar[str] = "kv_full"
    retry_elsewhere: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"{self.pages_needed} KV pages needed, {self.pages_free} free"

    def remedy(self) -> str:
        return "try another node, or this one again when sessions have ended; operators: raise --kv-memory"


@dataclass(eq=False)
class SessionsFull(ModelError):
    """The span keeps a state for each session, and there is no room for another one."""

    limit: int

    code: ClassVar[str] = "sessions_full"
    retry_elsewhere: ClassVar[bool] = True

    def __str__(self) -> str:
        return f"all {self.limit} places for sessions are taken"

    def remedy(self) -> str:
        return "try another node, or this one again when sessions have ended; operators: raise --kv-memory"


@dataclass(eq=False)
class RewindImpossible(ModelError):
    """The span keeps a running state of its sessions, and the chunk starts where no such state is kept any more."""

    position: int
    cached: int

    code: ClassVar[str] = "rewind_impossible"

    def __str__(self) -> str:
        return f"the chunk starts at position {self.position}, but {self.cached} tokens cannot be taken back that far"

    def remedy(self) -> str:
        return "send the session's tokens again from position 0"


@dataclass(eq=False)
class PositionGap(ModelError):
    """The chunk starts behind the last token that this span has cached."""

    position: int
    cached: int

    code: ClassVar[str] = "position_gap"

    def __str__(self) -> str:
        return f"the chunk starts at position {self.position}, only {self.cached} tokens are cached"

    def remedy(self) -> str:
        return f"send the session's tokens again from position {self.cached}"


@dataclass(eq=False)
class ContextTooLong(ModelError):
    """The session would hold more tokens than the model or the span allows."""

    tokens: int
    limit: int

    code: ClassVar[str] = "context_too_long"

    def __str__(self) -> str:
        return f"{self.tokens} tokens asked for, the limit is {self.limit}"

    def remedy(self) -> str:
        return f"shorten the prompt or ask for fewer new tokens: together at most {self.limit}"


@dataclass(eq=False)
class InvalidChunk(ModelError):
    """A chunk's inputs do not have the shape, type or values that this span takes."""

    reason: str

    code: ClassVar[str] = "invalid_chunk"

    def __str__(self) -> str:
        return self.reason

    def remedy(self) -> str:
        return "token ids on the first span, hidden states of the previous span on the others, at least one token"


@dataclass(eq=False)
class InvalidActivations(ModelError):
    """Activations that a codec cannot carry, or bytes that are none."""

    reason: str

    code: ClassVar[str] = "invalid_activations"
    retry_elsewhere: ClassVar[bool] = True

    def __str__(self) -> str:
        return self.reason

    def remedy(self) -> str:
        return "take another route, or ask for the codec raw, which loses nothing"


@dataclass(eq=False)
class LogitsNotFinite(ModelError):
    """The row of logits holds NaN or infinity: nothing can be chosen by it."""

    code: ClassVar[str] = "logits_not_finite"
    retry_elsewhere: ClassVar[bool] = True

    def __str__(self) -> str:
        return "its logits are not finite"

    def remedy(self) -> str:
        return "take another route; if it happens everywhere, the checkpoint or its number format is broken"


@dataclass(eq=False)
class OutsideGrammar(ModelError):
    """A grammar cannot be used, or the tokens so far cannot be continued under it."""

    reason: str

    code: ClassVar[str] = "outside_grammar"

    def __str__(self) -> str:
        return self.reason

    def remedy(self) -> str:
        return "correct the grammar, or make it simpler"


@dataclass(eq=False)
class InvalidSampling(ModelError):
    """A sampling parameter is outside its range."""

    field: str
    value: float
    allowed: str

    code: ClassVar[str] = "invalid_sampling"

    def __str__(self) -> str:
        return f"{self.field} = {self.value!r}; allowed: {self.allowed}"

    def remedy(self) -> str:
        return f"choose {self.field} within {self.allowed}"
