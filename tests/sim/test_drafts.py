"""Guesses in virtual time: whatever clients guess, alone or together, over crashes too, every token is the model's."""

from dataclasses import dataclass, replace
from itertools import islice

import pytest
from tests.adversaries import GUESSES, Adversary, Guess, always_wrong, right_then_wrong

from swarm_sim.digest_model import VOCABULARY, continuation
from swarm_sim.scenario import Scenario
from swarm_sim.simulated_client import Errand
from swarm_sim.simulation import simulate


def adversary(errand: Errand, blocks: int, guess: Guess, *, insists: bool) -> Adversary:
    answer = list(islice(continuation(errand.prompt, blocks, errand.seed), errand.tokens + 32))
    return Adversary(guess, prompt_tokens=len(errand.prompt), answer=answer, vocabulary=VOCABULARY, insists=insists)


@dataclass(frozen=True)
class Adversarial(Scenario):
    """Sixteen sessions, half of them greedy, that guess by all rules."""

    guesses: tuple[Guess, ...] = GUESSES
    insists: bool = True

    def errands(self) -> list[Errand]:
        return [
            replace(
                errand,
                drafter=adversary(errand, self.blocks, self.guesses[number % len(self.guesses)], insists=self.insists),
            )
            for number, errand in enumerate(super().errands())
        ]


SIXTEEN = Adversarial(nodes=6, sessions=16, blocks=8, duration_s=1.0)


@pytest.mark.parametrize("seed", range(4))
def test_no_guess_changes_a_token_among_sixteen_sessions(seed: int) -> None:
    report = simulate(replace(SIXTEEN, seed=seed))
    assert report.finished == 16, report
    assert report.is_right, report
    assert report.guesses_right > 0


@pytest.mark.parametrize("guess", GUESSES, ids=lambda guess: str(guess.__name__))
def test_no_guess_changes_a_token_of_a_session_alone(guess: Guess) -> None:
    report = simulate(Adversarial(nodes=2, sessions=1, blocks=4, guesses=(guess,)))
    assert report.finished == 1, report
    assert report.is_right, report


def test_guessing_goes_on_after_a_crash() -> None:
    crashing = Adversarial(
        nodes=12, sessions=24, blocks=12, duration_s=20.0, crashes_per_node_hour=200.0, guesses=(right_then_wrong,)
    )
    reports = [simulate(replace(crashing, seed=seed)) for seed in (1, 2, 3)]
    assert all(report.is_right for report in reports), reports
    assert all("hangs" not in report.failed for report in reports)
    assert sum(report.retries for report in reports) > 0
    assert sum(report.guesses_right for report in reports) > 0


def test_guesses_that_are_often_right_make_a_far_swarm_faster() -> None:
    plain = Scenario(nodes=8, sessions=12, blocks=12, duration_s=5.0)
    guessing = simulate(replace(plain, right_share=0.8))
    assert guessing.is_right
    assert guessing.guesses_right > guessing.tokens / 3
    assert guessing.tokens_per_s > 1.5 * simulate(plain).tokens_per_s


def test_guesses_that_always_miss_cost_a_far_swarm_little() -> None:
    def played(guesses: tuple[Guess, ...] | None) -> float:
        plain = Scenario(nodes=4, sessions=4, blocks=8, duration_s=0.0)
        scenario = (
            plain
            if guesses is None
            else Adversarial(nodes=4, sessions=4, blocks=8, duration_s=0.0, guesses=guesses, insists=False)
        )
        report = simulate(scenario)
        assert report.finished == 4
        return report.virtual_s

    assert played((always_wrong,)) <= 1.1 * played(None)
