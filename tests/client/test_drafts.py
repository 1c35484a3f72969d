"""Guesses and what is made of them: n-grams, the policy, and the steps that carry them."""

import random
from collections.abc import Callable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from swarm_client.draft_policy import MOST_TOKENS, PayingDrafts
from swarm_client.errors import BadResult
from swarm_client.ngram import LONGEST_KEY, NGramDrafter
from swarm_client.session import Session
from swarm_net.messages import Result

# -- n-grams -----------------------------------------------------------------------------------------------------------


def looked_up(ids: Sequence[int], count: int) -> list[int]:
    """The same by looking through all of the text."""
    for length in range(min(LONGEST_KEY, len(ids) - 1), 0, -1):
        for end in range(len(ids) - 1, length - 1, -1):
            if ids[end - length : end] == ids[-length:]:
                text = list(ids)
                for place in range(count):
                    text.append(text[end + place])
                return text[len(ids) :]
    return []


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.integers(1, 20), st.data())
def test_ngrams_continue_the_latest_place_that_ends_alike(ids: list[int], count: int, data: st.DataObject) -> None:
    drafter, known = NGramDrafter(), 0
    while known < len(ids):  # the index grows with the text, by steps of any size
        known = min(len(ids), known + data.draw(st.integers(1, 9)))
        draft = drafter.propose(ids[:known], count)
        assert list(draft.tokens) == looked_up(ids[:known], count)
        assert (draft.strength > 0) == bool(draft.tokens)


def test_a_longer_match_is_stronger() -> None:
    text = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]
    strengths = [NGramDrafter().propose([*text, 99, *text[:length]], 3).strength for length in range(1, 12)]
    assert strengths == [1, 2, 3, 4, 5, 6, 7, 8, 8, 8, 8]


# -- policy ------------------------------------------------------------------------------------------------------------


def play(
    policy: PayingDrafts, tokens: int, hits: Callable[[int], int], step_s: Callable[[int], float], strength: int = 4
) -> tuple[float, int]:
    """Generate in a model of a swarm: `hits` says how many of so many guesses are right, `step_s` what a step takes.

    Returns the time taken and the number of guesses sent.
    """
    done, time_s, guessed = 0, 0.0, 0
    while done < tokens:
        room = tokens - done - 1
        wanted = policy.ask(room) if room > 0 else 0
        sent = policy.keep(strength, wanted) if wanted else 0
        assert 0 <= sent <= wanted <= min(max(room, 0), MOST_TOKENS)
        right = min(hits(wanted), wanted)
        came = [1] * min(right, sent) + [0 if right < sent else 1]
        took_s = step_s(sent)
        policy.learn([1] * right + [2] * (wanted - right), strength, sent, came, took_s)
        done, time_s, guessed = done + len(came), time_s + took_s, guessed + sent
    return time_s, guessed


@pytest.mark.parametrize("is_free", [True, False])
@pytest.mark.parametrize("row_cost", [0.0, 0.02, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("tokens", [64, 500])
def test_guesses_that_always_miss_cost_little(is_free: bool, row_cost: float, tokens: int) -> None:
    """Whatever a guess costs, and though steps hesitate now and then."""
    losses = []
    for seed in range(20):
        rng, lost = random.Random(seed), []

        def step_s(sent: int, rng: random.Random = rng, lost: list[float] = lost) -> float:
            lost.append(row_cost * sent)
            return (1.0 + row_cost * sent) * (3.0 if rng.random() < 0.05 else rng.uniform(0.9, 1.1))

        play(PayingDrafts(is_free=is_free), tokens, lambda guesses: 0, step_s)
        losses.append(sum(lost))
    assert sum(losses) / len(losses) <= 0.05 * tokens + 2.0
    assert max(losses) <= 0.1 * tokens + 5.0


@pytest.mark.parametrize("is_free", [True, False])
def test_guesses_that_are_right_are_sent_and_pay(is_free: bool) -> None:
    rng = random.Random(1)
    time_s, _ = play(
        PayingDrafts(is_free=is_free),
        300,
        lambda guesses: guesses,
        lambda sent: (1 + 0.05 * sent) * rng.uniform(0.9, 1.1),
    )
    assert time_s < 300 / 4


@pytest.mark.parametrize("is_free", [True, False])
def test_right_guesses_that_cost_more_than_they_bring_are_left_alone(is_free: bool) -> None:
    time_s, guessed = play(PayingDrafts(is_free=is_free), 400, lambda guesses: guesses, lambda sent: 1.0 + 2.0 * sent)
    assert time_s < 400 * 1.1
    assert guessed < 60


def test_a_text_that_begins_to_repeat_is_noticed() -> None:
    policy = PayingDrafts(is_free=True)
    play(policy, 300, lambda guesses: 0, lambda sent: 1.0 + 0.05 * sent)
    time_s, _ = play(policy, 300, lambda guesses: guesses, lambda sent: 1.0 + 0.05 * sent)
    assert time_s < 300 / 2


def test_a_slower_route_is_measured_anew() -> None:
    policy = PayingDrafts(is_free=True)
    play(policy, 100, lambda guesses: guesses, lambda sent: 1.0)
    policy.start_route()
    assert policy.keep(8, MOST_TOKENS) == 0, "nothing is known of it yet"
    time_s, _ = play(policy, 200, lambda guesses: guesses, lambda sent: 5.0 + 0.1 * sent)
    assert time_s < 5.0 * 200 / 4


# -- steps -------------------------------------------------------------------------------------------------------------

ID = b"s" * 16


@given(st.data())
def test_verify_steps_follow_one_another_by_what_was_right(data: st.DataObject) -> None:
    talk = Session(session=ID, hops=1, last_peer="last", vocabulary=50, logprobs=True, top_logprobs=0)
    ids = [1, 2, 3]
    talk.step(ids, 0)
    talk.accept(Result(session=ID, frame=1, position=3, tokens=(4,), logprobs=(-1.0,)))
    ids.append(4)
    used: set[int] = set()
    tip = 0
    for frame in range(2, 8):
        drafts = data.draw(st.lists(st.integers(0, 49), max_size=5))
        step, body = talk.step(ids[-1:], 0, drafts)
        assert (step.position, step.count, step.frame) == (len(ids) - 1, len(drafts) + 1, frame)
        assert step.kind == ("verify" if drafts else "decode")
        assert list(memoryview(body).cast("i")) == [ids[-1], *drafts]
        assert [guess.token for guess in step.candidates] == drafts
        assert [guess.position for guess in step.candidates] == list(range(len(ids), len(ids) + len(drafts)))
        own = [guess.id for guess in step.candidates]
        assert [guess.parent for guess in step.candidates] == [step.tip, *own][: len(own)]
        assert not drafts or step.tip == tip
        assert own == sorted(set(own) - used)
        used |= set(own)
        right = data.draw(st.integers(0, len(drafts)))
        bonus = data.draw(st.integers(0, 49))
        tokens = (*drafts[:right], bonus)
        answer = talk.accept(
            Result(
                session=ID,
                frame=frame,
                position=len(ids),
                tokens=tokens,
                logprobs=(-1.0,) * len(tokens),
                accepted=tuple(own[:right]),
            )
        )
        assert answer is not None
        assert tuple(drawn.token for drawn in answer.drawn) == tokens
        ids += tokens
        tip = own[right - 1] if right else tip


RIGHT = Result(session=ID, frame=2, position=4, tokens=(7, 8, 9), logprobs=(-1.0,) * 3, accepted=(1, 2))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": ()},
        {"tokens": (7, 8, 9, 10), "accepted": (1, 2, 3)},  # more than can be
        {"accepted": (1,)},
        {"accepted": (2, 1)},
        {"tokens": (7, 6, 9)},  # what was accepted is not what was drawn
        {"logprobs": (-1.0,)},
        {"tokens": (7, 8, 50)},
        {"position": 6},
    ],
)
def test_an_answer_that_contradicts_itself_is_nonsense(changes: dict[str, object]) -> None:
    talk = Session(session=ID, hops=1, last_peer="last", vocabulary=50, logprobs=True, top_logprobs=0)
    talk.step([1, 2, 3], 0)
    talk.accept(Result(session=ID, frame=1, position=3, tokens=(4,), logprobs=(-1.0,)))
    talk.step([4], 0, [7, 8])
    with pytest.raises(BadResult):
        talk.accept(msgspec.structs.replace(RIGHT, **changes))
    assert talk.accept(RIGHT) is not None
