"""Which of several revisions a name means, and that one free record changes nothing."""

from typing import Any

import pytest

from swarm_net.errors import AmbiguousModel, NoSuchModel
from swarm_net.messages import ModelId, ModelSummary
from swarm_net.model_choice import MAX_CANDIDATES_OF_A_TELLER, candidates, choose
from swarm_net.records import Record

ONE, TWO, THREE = (ModelId(name="demo", revision=digits * 32) for digits in ("aa", "bb", "cc"))


def summary(model: ModelId, **changes: Any) -> ModelSummary:
    return ModelSummary(**{"model": model, "blocks": 12, "nodes": 1, **changes})


def record(peer: str, model: ModelId, start: int = 0, end: int = 12, **changes: Any) -> Record:
    fields: dict[str, Any] = {
        "sequence": 1,
        "published_ns": 0,
        "expires_ns": 1,
        "peer": peer,
        "model": model,
        "num_blocks": 12,
        "start": start,
        "end": end,
        "dtype": "float32",
        "max_context": 64,
    }
    return Record(**{**fields, **changes})


def test_one_that_is_served_whole_goes_before_one_that_more_peers_serve_in_part() -> None:
    partly = [record(peer, TWO, 0, 11) for peer in "bcd"]
    assert choose({ONE: [record("a", ONE)], TWO: partly}).model == ONE


def test_of_those_served_whole_the_one_of_most_peers_is_meant_and_the_others_are_told() -> None:
    found = {
        ONE: [record("a", ONE, 0, 6), record("b", ONE, 6, 12)],
        TWO: [record("c", TWO)],
        THREE: [record("d", THREE)],
    }
    choice = choose(found)
    assert choice.model == ONE
    assert choice.others == (TWO.revision, THREE.revision)
    assert all(text in choice.notice() for text in (*choice.others, f"demo@{TWO.revision[:12]}"))


def test_what_a_node_lists_without_records_is_not_shown() -> None:
    made_up = ModelId(name="demo", revision="\x1b]0;hello\x07")
    assert choose({ONE: [record("a", ONE)], made_up: []}).others == ()


def test_a_peer_counts_once_and_only_online_and_in_one_size() -> None:
    honest = [record("a", ONE, 0, 6), record("b", ONE, 6, 12)]
    again = [record("c", TWO, sequence=number) for number in range(9)]
    draining = [record(peer, TWO, state="draining") for peer in "defg"]
    other_size = [record(peer, TWO, num_blocks=12 + len(peer), end=12 + len(peer)) for peer in ("h", "hh", "hhh")]
    assert choose({ONE: honest, TWO: again + draining + other_size}).model == ONE


def test_a_popular_model_lends_its_peers_to_no_other_name() -> None:
    popular = ModelId(name="popular", revision=TWO.revision)
    borrowed = [record("attacker", TWO), *(record(peer, popular) for peer in "cdefg")]
    assert choose({ONE: [record("a", ONE), record("b", ONE)], TWO: borrowed}).model == ONE


def test_a_record_of_another_size_does_not_make_a_served_model_incomplete() -> None:
    strange = record("attacker", ONE, num_blocks=99, end=1)
    assert choose({ONE: [strange, record("a", ONE), record("b", ONE)], TWO: [record("c", TWO)]}).model == ONE


def test_where_nothing_tells_them_apart_neither_is_chosen() -> None:
    with pytest.raises(AmbiguousModel) as caught:
        choose({ONE: [record("a", ONE)], TWO: [record("b", TWO)], THREE: []})
    assert caught.value.revisions == (ONE.revision, TWO.revision)
    assert ONE.revision[:12] in caught.value.remedy()


def test_a_name_has_candidates_and_digits_mean_one() -> None:
    told = [[summary(ONE), summary(TWO)], [summary(TWO)]]
    assert candidates("demo", told) == [ONE, TWO]
    assert candidates(f"demo@{ONE.revision[:8]}", told) == [ONE]
    assert candidates(TWO.revision, told) == [TWO]
    with pytest.raises(NoSuchModel):
        candidates("other", told)
    alike = ModelId(name="demo", revision=ONE.revision[:-1] + "0")
    with pytest.raises(AmbiguousModel):  # who gives digits means one: how many serve it says nothing
        candidates(f"demo@{ONE.revision[:8]}", [[summary(ONE, nodes=9), summary(alike)]])


def test_a_node_that_lists_thousands_does_not_push_out_what_another_one_tells() -> None:
    made_up = [summary(ModelId(name="demo", revision=f"{number:064x}"), nodes=99) for number in range(2000)]
    found = candidates("demo", [made_up, [summary(ONE)]])
    assert ONE in found
    assert len(found) == MAX_CANDIDATES_OF_A_TELLER + 1
