"""Which model a text means, among those that a swarm serves. Pure; called by `snapshot.py` and by who names a model.

Anybody may publish a record with any name, so one name may stand for several revisions. Who gives digits of a revision
means exactly one. Of a bare name that revision is meant which is served whole, and of several such the one which more
peers serve under that name: a record costs nothing, but it counts once, so one node can neither make a name that others
serve unusable nor take it over. Peers are counted in signed records, not in what a node says of them. Keys cost nothing
either: who must be sure of the weights names the revision. Where nothing tells two revisions apart, neither is chosen.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from swarm_net.errors import AmbiguousModel, NoSuchModel
from swarm_net.messages import ModelId, ModelSummary
from swarm_net.records import Record, missing_blocks

MIN_REVISION_DIGITS = 6  # of a revision that is given in short
MAX_CANDIDATES_OF_A_TELLER = 8  # each costs a lookup; who lists thousands has no more say than others


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that is meant, and the revisions of its name that were passed over."""

    model: ModelId
    others: tuple[str, ...] = ()

    def notice(self) -> str:
        """Say what was passed over, and how to get it."""
        revisions = ", ".join(self.others)
        return (
            f"{self.model.name} is served in several revisions: {self.model.revision} was taken, the best served one, "
            f"not {revisions}; to choose one: {self.model.name}@{self.others[0][:12]}"
        )


def candidates(wanted: str, told: Sequence[Iterable[ModelSummary]]) -> list[ModelId]:
    """Return the models that a text may mean: a name, name@revision or revision, the last two perhaps cut short.

    `told` is what each of several nodes says is served. More than one is returned for a bare name alone.
    Raises NoSuchModel, AmbiguousModel.
    """
    known = [list(summaries) for summaries in told]
    name, _, revision = wanted.rpartition("@")
    matching = {each.model: None for summaries in known for each in _likeliest(wanted, summaries)}
    if matching:
        return list(matching)
    models = [each.model for summaries in known for each in summaries]
    exact = [each for each in models if name and each.name == name and _begins(each.revision, revision)]
    by_revision = {each.revision: each for each in exact or [each for each in models if _begins(each.revision, wanted)]}
    if not by_revision:
        raise NoSuchModel(model=wanted, known=tuple(sorted({each.name for each in models})))
    if len(by_revision) > 1:
        raise AmbiguousModel(model=name or wanted, revisions=tuple(sorted(by_revision)))
    return list(by_revision.values())


def choose(found: Mapping[ModelId, Iterable[Record]]) -> Choice:
    """Return which of several models of one name is meant, from the records of each. Raises AmbiguousModel."""
    strengths = {model: _strength(model, records) for model, records in found.items()}
    best = max(strengths.values())
    leaders = [model for model, strength in strengths.items() if strength == best]
    if len(leaders) > 1:
        raise AmbiguousModel(model=leaders[0].name, revisions=tuple(sorted(model.revision for model in leaders)))
    # Of what a node merely lists nothing is passed on: signed records alone hold text that people may be shown
    others = sorted(model.revision for model, (_, peers) in strengths.items() if peers and model is not leaders[0])
    return Choice(leaders[0], tuple(others))


def _likeliest(name: str, summaries: Iterable[ModelSummary]) -> list[ModelSummary]:
    named = [each for each in summaries if each.model.name == name]
    named.sort(key=lambda each: (bool(each.missing), -each.nodes, each.model.revision))
    return named[:MAX_CANDIDATES_OF_A_TELLER]


def _strength(model: ModelId, records: Iterable[Record]) -> tuple[bool, int]:
    """Return whether a model is served whole, and by how many peers under its name."""
    by_size: dict[int, list[Record]] = defaultdict(list)
    for record in records:
        if record.model.revision == model.revision and record.state == "online":
            by_size[record.num_blocks].append(record)
    return max(
        (
            (
                not missing_blocks(members, num_blocks),
                len({record.peer for record in members if record.model.name == model.name}),
            )
            for num_blocks, members in by_size.items()
        ),
        default=(False, 0),
    )


def _begins(revision: str, digits: str) -> bool:
    return len(digits) >= MIN_REVISION_DIGITS and revision.startswith(digits)
