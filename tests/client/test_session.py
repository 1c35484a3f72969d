"""The pure cores of a session: steps and results, deadlines, failover policy, timings, endings."""

import math

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from swarm_client.continuation import Continuation
from swarm_client.deadlines import Patience, opening_deadline_s, result_deadline_s
from swarm_client.detokenizer import NoText
from swarm_client.errors import BadResult
from swarm_client.failover import Avoided, judge, wait_before_retry_s
from swarm_client.session import Session
from swarm_client.timings import StepTimes
from swarm_client.tokenizer import Tokenizer
from swarm_net.messages import HopTiming, Load, ModelId, Result, TokenLogprob
from swarm_net.records import Record
from swarm_net.routing import Hop
from swarm_net.session_errors import (
    BadStep,
    HopLost,
    HopSilent,
    HopUnreachable,
    KVFull,
    PositionGap,
    RemoteError,
    SessionError,
)
from tests.client import tiny_tokenizers

VOCABULARY = 100
ID = b"s" * 16


def session(hops: int = 1, *, logprobs: bool = False, top_logprobs: int = 0) -> Session:
    return Session(
        session=ID,
        hops=hops,
        last_peer="last",
        vocabulary=VOCABULARY,
        logprobs=logprobs,
        top_logprobs=top_logprobs,
    )


@given(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=50), st.integers(1, 10), st.data())
def test_steps_follow_one_another_whatever_else_arrives(prompt: list[int], count: int, data: st.DataObject) -> None:
    talk = session()
    ids, frames, sent = list(prompt), [], list(prompt)
    for _ in range(count):
        kind = data.draw(st.sampled_from(["prefill", "decode", "replay"]))
        step, body = talk.step(sent, sent_ns=5, kind=kind)
        assert step.position + step.count == len(ids)
        assert list(memoryview(body).cast("i")) == sent
        assert (step.sample, step.acknowledge, step.sent_ns, step.kind) == (True, False, 5, kind)
        assert not frames or step.frame > frames[-1]
        frames.append(step.frame)
        right = Result(session=ID, frame=step.frame, position=len(ids), tokens=(7,))
        other = data.draw(st.sampled_from([0, *frames[:-1], step.frame + 1]))
        assert talk.accept(msgspec.structs.replace(right, frame=other)) is None
        assert talk.accept(msgspec.structs.replace(right, epoch=1)) is None
        answer = talk.accept(right)
        assert answer is not None
        assert talk.accept(right) is None, "the second copy is stale"
        sent = [drawn.token for drawn in answer.drawn]
        ids += sent


def test_pieces_of_a_prompt_are_acknowledged_in_their_order() -> None:
    talk = session()
    first, _ = talk.step([1, 2], sent_ns=0, kind="prefill", draw=False)
    second, _ = talk.step([3], sent_ns=0, kind="prefill", draw=False, sealed=b"voucher")
    last, _ = talk.step([4, 5], sent_ns=0, kind="prefill")
    assert [step.acknowledge for step in (first, second, last)] == [True, True, False]
    assert (second.sealed, last.position) == (b"voucher", 3)
    early = Result(session=ID, frame=second.frame, position=3)
    assert talk.accept(early) is None, "the first has not been answered"
    for step, position in ((first, 2), (second, 3)):
        answer = talk.accept(Result(session=ID, frame=step.frame, position=position))
        assert answer is not None
        assert not answer.drawn
    answer = talk.accept(Result(session=ID, frame=last.frame, position=5, tokens=(7,)))
    assert answer is not None
    assert [drawn.token for drawn in answer.drawn] == [7]


def test_a_piece_is_answered_without_tokens() -> None:
    talk = session()
    step, _ = talk.step([1, 2], sent_ns=0, kind="prefill", draw=False)
    with pytest.raises(BadResult):
        talk.accept(Result(session=ID, frame=step.frame, position=2, tokens=(7,)))


ALTERNATIVES = st.lists(st.builds(TokenLogprob, st.integers(0, 2 * VOCABULARY), st.floats()), max_size=4).map(tuple)
RESULTS = st.builds(
    Result,
    session=st.just(ID),
    epoch=st.integers(0, 1),
    frame=st.integers(0, 3),
    position=st.integers(0, 6),
    tokens=st.lists(st.integers(0, 2 * VOCABULARY), max_size=3).map(tuple),
    logprobs=st.lists(st.floats(), max_size=2).map(tuple),
    top_logprobs=st.lists(ALTERNATIVES, max_size=2).map(tuple),
    trail=st.lists(st.builds(HopTiming, *[st.integers(-(2**70), 2**70)] * 3), max_size=3).map(tuple),
)


GOOD = Result(
    session=ID,
    epoch=0,
    frame=1,
    position=3,
    tokens=(5,),
    logprobs=(-0.5,),
    top_logprobs=((TokenLogprob(5, -0.5),),),
    trail=(HopTiming(1, 2, 3),) * 2,
)


@given(RESULTS, st.booleans(), st.integers(0, 3))
@example(GOOD, True, 1)
def test_any_result_is_an_answer_or_stale_or_nonsense(result: Result, logprobs: bool, top: int) -> None:
    talk = session(hops=2, logprobs=logprobs, top_logprobs=top)
    talk.step([1, 2, 3], sent_ns=0)
    try:
        answer = talk.accept(result)
    except BadResult:
        return
    if answer is not None:
        assert (result.epoch, result.frame, result.position) == (0, 1, 3)
        (drawn,) = answer.drawn
        assert 0 <= drawn.token < VOCABULARY
        assert len(answer.trail) in (0, 2)
        assert drawn.logprob is None or (math.isfinite(drawn.logprob) and drawn.logprob <= 0)
        assert len(drawn.top_logprobs) <= top
        assert all(0 <= item.id < VOCABULARY and math.isfinite(item.logprob) for item in drawn.top_logprobs)


@pytest.mark.parametrize(("token", "logprob"), [(3, math.nan), (3, -math.inf), (VOCABULARY, 0.0)])
def test_alternatives_that_are_none_are_nonsense(token: int, logprob: float) -> None:
    talk = session(logprobs=True, top_logprobs=2)
    step, _ = talk.step([1, 2], sent_ns=0)
    top = ((TokenLogprob(7, -0.1), TokenLogprob(token, logprob)),)
    with pytest.raises(BadResult):
        talk.accept(Result(session=ID, frame=step.frame, position=2, tokens=(7,), logprobs=(-0.1,), top_logprobs=top))


# -- endings -----------------------------------------------------------------------------------------------------------

TOKENIZER = Tokenizer(tiny_tokenizers.byte_level())


@given(
    st.lists(st.integers(0, TOKENIZER.vocabulary - 1), min_size=30, max_size=30),
    st.integers(1, 30),
    st.sets(st.integers(0, TOKENIZER.vocabulary - 1), max_size=40),
    st.lists(st.text("aeinort l", min_size=1, max_size=2), max_size=2).map(tuple),
)
def test_a_continuation_ends_once_and_shows_what_it_may(
    ids: list[int], limit: int, eos: set[int], stop: tuple[str, ...]
) -> None:
    growing = Continuation(
        [5], max_new_tokens=limit, eos_ids=frozenset(eos), stop=stop, detokenizer=TOKENIZER.detokenizer()
    )
    for token in ids:
        growing.push(token)
        if growing.finish_reason is not None:
            break
    taken = [token.id for token in growing.tokens]
    assert growing.known_ids == [5, *taken]
    assert taken == ids[: len(taken)]
    assert [token.finish_reason for token in growing.tokens[:-1]] == [None] * (len(taken) - 1)
    assert not any(text in growing.text for text in stop)
    whole = TOKENIZER.decode(taken[:-1] if growing.finish_reason == "eos" else taken)
    if growing.finish_reason == "stop":
        assert whole.startswith(growing.text)
        assert any(text in whole for text in stop)
    else:
        assert growing.text == whole
        assert (growing.finish_reason == "eos") == (taken[-1] in eos)
        assert growing.finish_reason == "eos" or len(taken) == limit


def test_a_continuation_without_text_ends_by_length() -> None:
    growing = Continuation([5], max_new_tokens=2, eos_ids=frozenset(), stop=(), detokenizer=NoText())
    assert [growing.push(1).finish_reason, growing.push(2).finish_reason] == [None, "length"]


# -- deadlines ---------------------------------------------------------------------------------------------------------


def hop(start: int, end: int, *, prefill: float = 0.0, decode: float = 0.0, queued: int = 0) -> Hop:
    record = Record(
        sequence=1,
        published_ns=1,
        expires_ns=2,
        peer="p",
        model=ModelId(name="m", revision="r"),
        num_blocks=8,
        start=0,
        end=8,
        dtype="float32",
        prefill_tokens_per_s=prefill,
        decode_tokens_per_s=decode,
        load=Load(queued_tokens=queued),
        max_context=100,
    )
    return Hop(record, start, end)


def test_deadlines_come_from_promises_above_a_floor() -> None:
    patience = Patience(factor=10, step_floor_s=1, dial_timeout_s=5, opening_floor_s=2)
    assert result_deadline_s([hop(0, 8, prefill=1000, decode=100)], 1, patience) == 1
    assert result_deadline_s([hop(0, 8, prefill=100, decode=10)], 1001, patience) == pytest.approx(
        10 * (10 + 0.1 + 12.5)
    )
    half = [hop(0, 4, prefill=100, decode=10, queued=200), hop(4, 8, prefill=100, decode=10)]
    assert result_deadline_s(half, 1001, patience) == pytest.approx(10 * (10 + 0.1 + 12.5 + 2))
    assert result_deadline_s([hop(0, 8)], 101, patience) > 10
    for slow in (hop(0, 8, prefill=1e-300, decode=1e-300), hop(0, 8, prefill=10, decode=10, queued=2**31 - 1)):
        assert result_deadline_s([slow], 10, patience) == 60 + 20
    assert opening_deadline_s(3, patience) == 17


# -- failover ----------------------------------------------------------------------------------------------------------

PEERS = ("a", "b", "c")


@pytest.mark.parametrize(
    ("error", "blamed", "suspected"),
    [
        (HopLost(target="b", reason="x", hop=0, peer="a"), ("b",), ()),
        (HopUnreachable(target="c", reason="x", hop=1, peer="b"), ("c",), ()),
        (HopLost(target="stranger", reason="x", hop=0, peer="a"), ("a",), ()),
        (KVFull(1, 2, 3, hop=2, peer="c"), ("c",), ()),
        (KVFull(1, 2, 3, hop=2, peer="stranger"), (), PEERS),
        (HopSilent(waited_ms=5), (), PEERS),
        (BadResult("c", "x"), ("c",), ()),
    ],
)
def test_who_is_blamed(error: Exception, blamed: tuple[str, ...], suspected: tuple[str, ...]) -> None:
    verdict = judge(error, PEERS)
    assert (verdict.retry, verdict.blamed, verdict.suspected) == (True, blamed, suspected)
    assert (verdict.avoid_s > 0) == bool(blamed or suspected)


def test_a_silent_hop_alone_is_to_blame() -> None:
    assert judge(HopSilent(waited_ms=5), ("a",)).blamed == ("a",)


@pytest.mark.parametrize(
    ("error", "retry"),
    [
        (BadStep(reason="x"), False),
        (PositionGap(position=5, cached=3), True),
        (RemoteError(remote_code="x", description="", advice="", remote_retry="never"), False),
        (RemoteError(remote_code="x", description="", advice="", remote_retry="elsewhere"), True),
        (ValueError(), False),
    ],
)
def test_what_is_tried_again(error: SessionError, retry: bool) -> None:
    assert judge(error, PEERS).retry == retry


def test_peers_are_avoided_for_a_while() -> None:
    avoided = Avoided()
    avoided.add(("a", "b"), now_s=10, avoid_s=5)
    avoided.add(("a",), now_s=11, avoid_s=1)
    assert avoided.at(14.9) == {"a", "b"}
    assert avoided.at(15) == frozenset()


def test_waits_grow_and_stay_short() -> None:
    waits = [wait_before_retry_s(attempt) for attempt in range(1, 20)]
    assert waits == sorted(waits)
    assert waits[-1] == 5.0


# -- timings -----------------------------------------------------------------------------------------------------------


def test_timings_are_medians_of_decode_steps() -> None:
    times = StepTimes(started_s=100.0)
    times.add(100.5, (HopTiming(1, 2, 90_000), HopTiming(3, 4, 80_000)), 9, is_prefill=True)
    for place, compute_us in enumerate((1000, 5000, 2000)):
        times.add(100.6 + place / 10, (HopTiming(100, 10, compute_us), HopTiming(200, 20, 3000)), 50, is_prefill=False)
    times.add(100.9, (), 0, is_prefill=False)
    found = times.summary(("a", "b"))
    assert found.time_to_first_token_s == pytest.approx(0.5)
    assert found.total_s == pytest.approx(0.9)
    assert found.tokens_per_s == pytest.approx(4 / 0.4)
    assert [(one.peer, one.compute_ms, one.queue_ms, one.wire_ms) for one in found.hops] == [
        ("a", 2.0, 0.01, 0.1),
        ("b", 3.0, 0.02, 0.2),
    ]
    assert found.return_wire_ms == 0.05
    assert found.overhead_ms == pytest.approx(95)  # each step took 100 ms, of which 4, 8 and 5 were computed


def test_timings_of_a_single_token_are_those_of_its_prefill() -> None:
    times = StepTimes(started_s=0.0)
    times.add(0.5, (HopTiming(1, 2, 90_000),), 9, is_prefill=True)
    found = times.summary(("a",))
    assert found.tokens_per_s is None
    assert found.hops[0].compute_ms == 90.0
    assert found.overhead_ms is None
    times.start_route()
    assert times.summary(("b",)).hops == ()
