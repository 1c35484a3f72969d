"""A small model at the client as a drafter: loaded when it is first used, in a thread of its own.

Owns the thread and the errors that a user can meet; the model is `swarm_model.draft_model`'s, imported only here and
only then, because it needs torch. Made by `model.py`, once for each source.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

from swarm_client.daemon_executor import DaemonExecutor
from swarm_client.drafts import Draft, Drafter
from swarm_client.errors import BadDraft, DraftNeedsTorch, ForeignDraft
from swarm_net.messages import SamplingSpec

if TYPE_CHECKING:
    from swarm_client.tokenizer import Tokenizer
    from swarm_model.checkpoint import Checkpoint
    from swarm_model.draft_model import DraftModel
    from swarm_model.sampling_params import Sampling

STRENGTH = 4  # of a small model's guess, until its hits are counted


class DraftCheckpoint:
    """A checkpoint that guesses for all sessions of a model."""

    def __init__(self, source: str, *, vocab_size: int, tokenizer: "Tokenizer | None") -> None:
        self.thread = DaemonExecutor("draft")
        self._source = source
        self._vocab_size = vocab_size
        self._tokenizer = tokenizer
        self._model: DraftModel | None = None
        self._numbers = count()

    def drafter(self, sampling: SamplingSpec) -> Drafter:
        """Return a drafter for one generation."""
        return _CheckpointDrafter(self, b"%d" % next(self._numbers), sampling)

    def close(self) -> None:
        """Let the thread end; waits for nothing."""
        self.thread.shutdown(wait=False, cancel_futures=True)

    def model(self) -> "DraftModel":
        """Return the model, loaded when asked for first; call it in `thread`. Raises ClientError."""
        if self._model is None:
            self._model = self._load()
        return self._model

    def _load(self) -> "DraftModel":
        try:
            from swarm_model.checkpoint import Checkpoint
            from swarm_model.draft_model import DraftModel
            from swarm_model.errors import ModelError
        except ImportError as error:
            raise DraftNeedsTorch(str(error)) from error
        try:
            checkpoint = Checkpoint.open(self._source)
            self._compare(checkpoint)
            return DraftModel.load(checkpoint)
        except (ModelError, OSError) as error:
            raise BadDraft(self._source, str(error)) from error

    def _compare(self, checkpoint: "Checkpoint") -> None:
        """Raise ForeignDraft unless both models mean the same by each id, as far as can be told."""
        from swarm_client.tokenizer import Tokenizer

        own = checkpoint.directory / "tokenizer.json"
        if self._tokenizer is not None and own.is_file():
            if not self._tokenizer.has_vocabulary_of(Tokenizer(own.read_bytes())):
                raise ForeignDraft(self._source, "its tokenizer has another vocabulary")
        elif (size := int(checkpoint.config.get_text_config().vocab_size)) != self._vocab_size:
            raise ForeignDraft(self._source, f"it knows {size} tokens, the model {self._vocab_size}")


class _CheckpointDrafter(Drafter):
    """One session's guesses."""

    def __init__(self, checkpoint: DraftCheckpoint, session: bytes, sampling: SamplingSpec) -> None:
        self.thread = checkpoint.thread
        self._load: Callable[[], DraftModel] = checkpoint.model
        self._session = session
        self._spec = sampling
        self._sampling: Sampling | None = None

    def prepare(self) -> None:
        self._load()
        from swarm_model.sampling_params import Sampling

        spec = self._spec
        self._sampling = Sampling(
            temperature=spec.temperature,
            top_k=spec.top_k,
            top_p=spec.top_p,
            min_p=spec.min_p,
            repetition_penalty=spec.repetition_penalty,
            seed=spec.seed,
        )

    def propose(self, ids: Sequence[int], max_tokens: int) -> Draft:
        from swarm_model.pages import SessionKey

        assert self._sampling is not None
        return Draft(self._load().propose(SessionKey(self._session), ids, max_tokens, self._sampling), STRENGTH)

    def close(self) -> None:
        if self._sampling is not None:
            from swarm_model.pages import SessionKey

            self._load().drop(SessionKey(self._session))
