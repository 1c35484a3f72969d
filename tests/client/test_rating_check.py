"""Whose rating cannot be true."""

from swarm_client.rating_check import LEAST_S, TOLERANCE, RatingCheck


def checked(waited_s: float, **rated_s: float) -> tuple[str, ...]:
    check = RatingCheck()
    check.sent(100.0)
    check.sent(100.0 + waited_s / 2)
    check.answered(100.0 + waited_s, rated_s)
    return check.overrated


def test_a_hop_cannot_have_computed_for_longer_than_its_client_waited() -> None:
    assert checked(2.0, a=1.9, b=2.0 * TOLERANCE + 0.1, c=0.1) == ("b",)


def test_somewhat_more_is_no_proof() -> None:
    assert checked(2.0, a=2.0 * TOLERANCE) == ()


def test_nothing_is_said_of_a_moment_or_of_nothing() -> None:
    assert checked(LEAST_S / 2, a=100.0) == ()
    assert RatingCheck().overrated == ()
