"""What a node knows of its sessions: a pure table of who may send what, where a step fits, and what KV is promised.

Owns the rules by which an opening or a step is accepted, and the promise of KV: a session is admitted for `max_tokens`
tokens in whole pages or refused at once with the numbers, so that a running one never fails for want of memory. It
takes `now` and returns decisions; `node.py` sends and receives, `compute.py` runs.

Order: (epoch, frame, position) grows strictly within a session. What is not greater is a duplicate and is dropped; a
higher epoch voids what waits of older ones, and its steps stand behind what has run by then. `position` below the end
of what was accepted cuts the cache.
"""

from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from swarm_model.sampling_params import MAX_BIAS, MAX_PENALTY
from swarm_net.links import Body, Link, PeerId
from swarm_net.messages import HopSpec, Lane, Open, Step
from swarm_net.prefixes import PREFIX_CHUNK_TOKENS
from swarm_net.session_errors import (
    BadStep,
    ContextTooLong,
    KVFull,
    ModelNotServed,
    PositionGap,
    RewindImpossible,
    SessionFull,
    SessionUnknown,
    SpanNotServed,
    Unsupported,
)
from swarm_node.cashier import Paid
from swarm_node.executor import Draw, SpanFacts
from swarm_node.grammars import Matcher
from swarm_node.scheduler import Work

MAX_CANDIDATES = 64
"""Of one verify step, which runs in one piece: for each there is a row of logits at the last hop."""

LEAST_STEP_BYTES = 512
"""That a step which waits for its payment counts for, however little it carries."""

MAX_WAITING_ROUNDS = 4
"""How often all tokens of a session may wait at a hop at once: a whole prompt may, and cut and sent again more."""


@dataclass(slots=True, eq=False)
class Session:
    """One session at this hop."""

    id: bytes
    open: Open
    upstream: Link
    kv_tokens: int  # promised, in whole pages
    touched_s: float
    token_bytes: int  # of one token in the bodies that come
    hop: int = field(init=False)
    spec: HopSpec = field(init=False)
    is_first: bool = field(init=False)
    is_last: bool = field(init=False)
    upstream_dtype: str = field(init=False)  # what the previous hop's activations come in
    upstream_codec: str = field(init=False)  # what a step's body comes in: token ids are sent as they are
    downstream: dict[Lane, Link] = field(default_factory=dict)  # to the next hop; empty on the last
    reply: Link | None = None  # to the client; on the last hop alone
    is_ready: bool = False
    epoch: int = 0
    newest: tuple[int, int, int] = (0, -1, -1)  # (epoch, frame, position) of the newest accepted step
    tail: int = 0  # tokens cached once everything accepted has run
    waiting: deque[int] = field(default_factory=deque)  # where the steps that have not wholly run go on, in their order
    checkpoint: int = 0  # how far back a span that keeps checkpoints goes
    waiting_tokens: int = 0  # accepted here, and neither run nor voided yet
    ids: NDArray[np.int32] | None = None  # [tail], where penalties or a grammar need them; 0 for what they never see
    newest_candidate: int = 0
    paid: Paid | None = None  # where the node is paid for its work
    unpaid: deque[tuple[Step, bytes]] = field(default_factory=deque)  # steps that wait for their payment, and bodies
    unpaid_bytes: int = 0  # of these
    matcher: Matcher | None = None  # of the session's grammar; on the last hop alone
    unmasked: int = 0  # steps accepted whose masks are not there yet

    def __post_init__(self) -> None:
        hops, hop = self.open.hops, self.open.hop
        self.hop, self.spec = hop, hops[hop]
        self.is_first, self.is_last = hop == 0, hop == len(hops) - 1
        self.upstream_dtype = "" if self.is_first else hops[hop - 1].dtype
        self.upstream_codec = "raw" if self.is_first else self.open.codec

    @property
    def next_spec(self) -> HopSpec | None:
        return self.open.hops[self.hop + 1] if self.hop + 1 < len(self.open.hops) else None

    def begin_at(self, tokens: int) -> None:
        """Begin behind so many tokens of a prefix that was kept."""
        self.tail = tokens
        if self.ids is not None:
            self.ids = np.zeros(tokens, np.int32)

    @property
    def may_begin_later(self) -> bool:
        """Whether the tokens that a prefix names need not come with the steps."""
        sampling, named = self.open.sampling, len(self.open.prefix) * PREFIX_CHUNK_TOKENS
        return not sampling.needs_prompt_ids and (not sampling.counts_answer or named <= sampling.prompt_tokens)

    def ran_to(self, position: int, *, is_end: bool) -> None:
        """Note how far the oldest step of this epoch has run."""
        self.waiting.popleft()
        if not is_end:
            self.waiting.appendleft(position)

    def enter(self, epoch: int) -> None:
        """Void what waits: what is cached behind the place of a step that never ran is not what it would have left."""
        self.tail = min(self.waiting, default=self.tail)
        self.waiting.clear()
        self.epoch, self.newest = epoch, (epoch, -1, -1)

    @property
    def links(self) -> list[Link]:
        """Every link that the session cannot go on without."""
        return [self.upstream, *self.downstream.values(), *([self.reply] if self.reply is not None else [])]


@dataclass(slots=True)
class SessionTable:
    """All sessions of a node, and the KV tokens promised to them."""

    facts: SpanFacts
    peer: PeerId
    revision: str
    model: str
    takes_grammar: bool = False
    sessions: dict[bytes, Session] = field(default_factory=dict)
    ending: set[bytes] = field(default_factory=set)  # removed and not yet released: their ids are still taken
    kv_promised: int = 0

    @property
    def kv_free(self) -> int:
        """Count the tokens that may be promised; none where no other session's state has room."""
        places = self.facts.max_sessions
        if places is not None and len(self.sessions) + len(self.ending) >= places:
            return 0
        return self.facts.kv_tokens - self.kv_promised

    def open(self, message: Open, link: Link, now_s: float) -> Session:
        """Admit a session or say why not; raises SessionError, with nothing changed."""
        facts = self.facts
        if message.session in self.sessions or message.session in self.ending:
            raise BadStep(reason="a session with this id is open, or just ending")
        if message.hop >= len(message.hops) or message.hops[message.hop].peer != self.peer:
            raise BadStep(reason="this node is not at that place of the route")
        if message.model.revision != self.revision:
            raise ModelNotServed(asked=str(message.model), served=f"{self.model}@{self.revision[:12]}")
        self._check_route(message)
        spec = message.hops[message.hop]
        if not facts.start <= spec.start < spec.end <= facts.end:
            raise SpanNotServed(start=spec.start, end=spec.end, served_start=facts.start, served_end=facts.end)
        self._check_features(message)
        if not 1 <= message.max_tokens <= facts.max_context:
            raise ContextTooLong(tokens=message.max_tokens, limit=facts.max_context)
        pages = -(-message.max_tokens // facts.page_size)
        if pages * facts.page_size > min(self.kv_free, facts.pool_tokens):
            raise KVFull(tokens_needed=message.max_tokens, tokens_free=self.kv_free, tokens_total=facts.kv_tokens)

        session = Session(message.session, message, link, pages * facts.page_size, now_s, self._token_bytes(message))
        if message.sampling.needs_ids:
            session.ids = np.empty(0, np.int32)
        self.kv_promised += session.kv_tokens
        self.sessions[session.id] = session
        return session

    def _check_route(self, message: Open) -> None:
        """Every block exactly once, and nobody twice."""
        blocks = [(spec.start, spec.end) for spec in message.hops]
        starts, ends = [start for start, _ in blocks], [end for _, end in blocks]
        if starts != [0, *ends[:-1]] or ends[-1] != self.facts.num_blocks or any(s >= e for s, e in blocks):
            raise BadStep(reason=f"the route's spans {blocks} do not cover {self.facts.num_blocks} blocks once")
        if len({spec.peer for spec in message.hops}) != len(message.hops):
            raise BadStep(reason="a peer stands twice in the route")

    def _token_bytes(self, message: Open) -> int:
        """Return the bytes of one token in a step's body: of its id at the first hop, of its activations behind it."""
        if message.hop == 0:
            return 4
        width = self.facts.activation_bytes(message.hops[message.hop - 1].dtype, message.codec)
        assert width is not None  # checked
        return width

    def _check_features(self, message: Open) -> None:
        sampling = message.sampling
        if message.numeric_class not in ("", self.facts.record_class):
            raise Unsupported(feature=f"numeric class {message.numeric_class}")
        if message.edges != "remote":
            raise Unsupported(feature=f"edges={message.edges}")
        if message.codec not in self.facts.codecs:
            raise Unsupported(feature=f"codec {message.codec}")
        if message.hop > 0 and self.facts.activation_bytes(message.hops[message.hop - 1].dtype) is None:
            raise Unsupported(feature=f"activations in {message.hops[message.hop - 1].dtype}")
        if message.adapter:
            raise Unsupported(feature=f"adapter {message.adapter}")
        if sampling.grammar and not self.takes_grammar and message.hop == len(message.hops) - 1:
            raise Unsupported(feature="grammar")
        if message.standby:
            raise Unsupported(feature="standby")
        if wanted := set(message.wanted) - {"tokens", "logprobs"}:
            raise Unsupported(feature=f"wanted outputs {', '.join(sorted(wanted))}")
        in_range = (
            0.0 <= sampling.temperature <= 100.0
            and 0.0 < sampling.top_p <= 1.0
            and 0.0 <= sampling.min_p <= 1.0
            and 0.01 <= sampling.repetition_penalty <= 100.0
            and abs(sampling.frequency_penalty) <= MAX_PENALTY
            and abs(sampling.presence_penalty) <= MAX_PENALTY
            and all(abs(biased.bias) <= MAX_BIAS for biased in sampling.logit_bias)
            and sampling.prompt_tokens <= message.max_tokens
        )
        if not in_range:  # also what is not a number
            raise BadStep(reason="sampling values out of range")
        if any(biased.token >= self.facts.vocab_size for biased in sampling.logit_bias):
            raise BadStep(reason=f"a bias for a token id outside 0..{self.facts.vocab_size - 1}")

    def find(self, session: bytes, sender: PeerId) -> Session:
        """Return a session that the sender may send steps to; raises SessionUnknown, also to keep others' secret."""
        found = self.sessions.get(session)
        if found is None or found.upstream.peer != sender:
            raise SessionUnknown()
        return found

    def accept(self, session: Session, step: Step, body: Body, now_s: float) -> Work | None:
        """Check a step against its session; None for a duplicate.

        Raises SessionError with nothing changed, but that a step of a higher epoch begins it even so: the steps behind
        it must not find what it has voided.
        """
        order = (step.epoch, step.frame, step.position)
        if order <= session.newest:
            return None
        if step.epoch > session.epoch:
            session.enter(step.epoch)
        data = memoryview(body).cast("B")
        self._check_step(session, step, data)
        ids = self._ids(session, step, data)
        if ids is not None:
            assert session.ids is not None
            session.ids = np.concatenate([session.ids[: step.position], ids])
        draw = None
        if step.sample and session.is_last:
            drafts = tuple(candidate.token for candidate in step.candidates)
            draw = Draw(session.open.sampling, session.ids, drafts)

        session.newest = order
        if step.candidates:
            session.newest_candidate = step.candidates[-1].id
        session.tail = step.position + step.count
        session.checkpoint = step.position if step.kind == "verify" else session.tail  # a verify step runs in one piece
        session.waiting.append(step.position)
        session.touched_s = now_s
        session.waiting_tokens += step.count
        return Work(
            session=session.id,
            epoch=step.epoch,
            frame=step.frame,
            position=step.position,
            count=step.count,
            kind=step.kind,
            blocks=(session.spec.start, session.spec.end),
            data=data,
            dtype=session.upstream_dtype,
            codec=session.open.codec,
            sample=step.sample,
            draw=draw,
            arrived_s=now_s,
            ids=ids,
            tip=step.tip,
            candidates=step.candidates,
            trail=step.trail,
            hops=len(session.open.hops),
            acknowledge=step.acknowledge,
            sealed=step.sealed,
        )

    def _check_step(self, session: Session, step: Step, data: memoryview) -> None:
        if not session.is_ready:
            raise BadStep(reason="a step before the session was opened")
        if len(step.trail) > session.hop:
            raise BadStep(reason=f"timings of {len(step.trail)} hops before hop {session.hop}")
        if step.kind == "verify" or step.candidates:
            self._check_candidates(session, step)
        if step.codec != session.upstream_codec:
            raise BadStep(reason=f"codec {step.codec}, the session was opened with {session.open.codec}")
        if step.count < 1:
            raise BadStep(reason="a step without tokens")
        if len(data) != step.count * session.token_bytes:
            raise BadStep(reason=f"{len(data)} bytes for {step.count} tokens of {session.token_bytes} bytes")
        if step.position > session.tail:
            raise PositionGap(position=step.position, cached=session.tail)
        if step.position < session.tail:
            self._check_rewind(session, step.position)
        if (tokens := step.position + step.count) > session.open.max_tokens:
            raise SessionFull(tokens=tokens, limit=session.open.max_tokens)
        if session.waiting_tokens + step.count > (limit := MAX_WAITING_ROUNDS * session.open.max_tokens):
            raise BadStep(reason=f"more than {limit} tokens wait")
        if not session.is_first and session.ids is None:
            return
        raw_ids = data if session.is_first else step.token_ids
        if len(raw_ids) != 4 * step.count:
            raise BadStep(reason="penalties and grammars need the token ids of each step")
        ids = np.frombuffer(raw_ids, "<i4").tolist()  # plain integers: of one id, numpy's reductions cost the most
        if min(ids) < 0 or max(ids) >= self.facts.vocab_size:
            raise BadStep(reason=f"a token id outside 0..{self.facts.vocab_size - 1}")
        if step.candidates and ids[1:] != [candidate.token for candidate in step.candidates]:
            raise BadStep(reason="candidates that are not the step's tokens")

    def _check_rewind(self, session: Session, position: int) -> None:
        """A span with a running state goes back within the last step that verified guesses, or to the beginning."""
        if self.facts.rewind == "any" or position == 0:
            return
        back_to = session.checkpoint if self.facts.rewind == "checkpoints" else session.tail
        if position < back_to:
            raise RewindImpossible(position=position, cached=session.tail)

    def _check_candidates(self, session: Session, step: Step) -> None:
        """A verify step is one known token and a chain of guesses behind it."""
        if self.facts.rewind == "none":
            raise Unsupported(feature=f"drafts on a span with rewind={self.facts.rewind}")
        if step.kind != "verify" or not step.sample:
            raise BadStep(reason="candidates in a step that does not verify them")
        if not 1 <= len(step.candidates) <= MAX_CANDIDATES or step.count != len(step.candidates) + 1:
            raise BadStep(reason=f"{len(step.candidates)} candidates in {step.count} tokens, at most {MAX_CANDIDATES}")
        if step.tip > session.newest_candidate:
            raise BadStep(reason="a tip that was never a candidate")
        newest, parent = session.newest_candidate, step.tip
        for place, candidate in enumerate(step.candidates, start=step.position + 1):
            if candidate.id <= newest:
                raise BadStep(reason="a candidate's id that was used before")
            if candidate.parent != parent or candidate.position != place:
                raise BadStep(reason="candidates that are no chain behind the step's first token")
            if candidate.token >= self.facts.vocab_size:
                raise BadStep(reason=f"a token id outside 0..{self.facts.vocab_size - 1}")
            newest = parent = candidate.id

    def _ids(self, session: Session, step: Step, data: memoryview) -> NDArray[np.int32] | None:
        """The step's token ids, if penalties or a grammar at the last hop need them."""
        if session.ids is None:
            return None
        return np.frombuffer(data if session.is_first else step.token_ids, "<i4")

    def remove(self, session: Session) -> bool:
        """Take a session out; False if that was done before.

        Its KV stays promised and its id taken until `release`, when the executor has let go of its pages and nothing
        that it computed can arrive any more.
        """
        if self.sessions.get(session.id) is not session:
            return False
        del self.sessions[session.id]
        self.ending.add(session.id)
        return True

    def release(self, session: Session) -> None:
        """Give back the KV promised to a session that was removed."""
        self.kv_promised -= session.kv_tokens
        self.ending.discard(session.id)

    def idle(self, now_s: float, timeout_s: float) -> list[Session]:
        """Return the sessions that nobody has used for so long; one that still computes is in use."""
        return [
            session
            for session in self.sessions.values()
            if not session.waiting_tokens and now_s - session.touched_s > timeout_s
        ]

    def most_unpaid_bytes(self, session: Session) -> int:
        """Return how much may wait for its payment: all that the session was opened for, once."""
        return session.open.max_tokens * max(session.token_bytes, LEAST_STEP_BYTES)

    def lapsed(self, now_s: float) -> list[Session]:
        """Return the sessions whose lease of KV had ended by then."""
        return [
            session
            for session in self.sessions.values()
            if session.paid is not None and session.is_ready and session.paid.leased_until_s < now_s
        ]

    def using(self, link: Link) -> list[Session]:
        """Return the sessions that cannot go on without a link."""
        return [session for session in self.sessions.values() if any(used is link for used in session.links)]
