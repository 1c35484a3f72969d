"""How one session is paid: what each hop is offered, which vouchers go along, what it all cost.

Owns one `Purse` for each hop that asks for money, and the seals that only that hop can open. Made by `wallet.py`, which
has opened the channels; `live_session.py` calls it for each message. Hops that ask for nothing get nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from swarm_client.errors import BadResult
from swarm_client.rating_check import RatingCheck
from swarm_client.results import HopReceipt
from swarm_ledger.errors import BadSection, BadSignature, Disputed
from swarm_ledger.metering import Work
from swarm_ledger.quotes import Quote
from swarm_ledger.sealing import Seal
from swarm_ledger.sections import open_section, pack, pay_section, read_grant
from swarm_ledger.spending import Purse
from swarm_net.messages import Credit, HopGrant

LEASE_S = 60  # of KV, at a time
RENEW_S = 20.0  # before the end of a lease
LEAST_PIECE_TOKENS = 64  # of a prompt that is paid for piece by piece
PIECES_IN_FLIGHT = 2


class Keeper(Protocol):
    """Who is told before anything is signed, and when a session has ended: the wallet."""

    def before_signing(self, hops: Sequence["HopPayment"], cumulatives: Sequence[int]) -> None:
        """Write down up to where channels will sign. Raises OverBudget, BrokenStore."""

    def closed(self, hop: "HopPayment") -> None:
        """A session has ended at a hop."""


@dataclass(slots=True)
class HopPayment:
    """One hop that is paid."""

    peer: str
    start: int
    end: int
    quote: Quote
    digest: bytes
    purse: Purse
    seal: Seal
    ephemeral: bytes
    claimed: int  # of the channel, as the ledger said
    expected: int  # that the session costs at most, probably

    def opening(self) -> bytes:
        """Return the hop's section of Open."""
        channel = self.purse.channel
        return self.ephemeral + self.seal.seal(open_section(self.digest, channel.key, channel.best))


class SessionPayment:
    """All hops of one session's route; free ones are None."""

    def __init__(
        self, hops: Sequence[HopPayment | None], keeper: Keeper, now_s: Callable[[], float], *, is_replay: bool
    ) -> None:
        self._hops = hops
        self._paid = [hop for hop in hops if hop is not None]
        self._keeper = keeper
        self._now_s = now_s
        self._ratings = RatingCheck()
        self._leased_until_s = 0.0
        self._leased_on_s = 0  # since the opening
        self.prefill: Work = "replay" if is_replay else "prefill"

    def opening(self, place: int) -> bytes:
        """Return what a hop is offered, sealed for it."""
        hop = self._hops[place]
        return hop.opening() if hop is not None else b""

    def granted(self, grants: Sequence[HopGrant], cached_tokens: int) -> None:
        """Take up what the hops have answered. Raises BadResult, naming the hop that cannot be paid, OverBudget."""
        by_place = {grant.hop: grant for grant in grants}
        self._leased_until_s = self._now_s() + LEASE_S
        for place, hop in enumerate(self._hops):
            if hop is None:
                continue
            grant = by_place.get(place)
            try:
                if grant is None:
                    raise BadSection("no grant")
                section = read_grant(hop.seal.open(grant.sealed))
                disputed = hop.purse.channel.adopt(section, hop.peer, claimed=hop.claimed)
            except (BadSection, BadSignature, Disputed) as error:
                raise BadResult(peer=hop.peer, reason=str(error)) from error
            hop.purse.window = int.from_bytes(section.window, "big") - disputed
            hop.purse.begin(cached_tokens, min(section.lease_s, LEASE_S))

    def piece(self, position: int, tokens: int) -> int:
        """Return how many of the next tokens of a prompt to send at a time: what half of every window pays for."""
        while tokens > LEAST_PIECE_TOKENS and any(
            hop.purse.cost_of(self.prefill, position, tokens, 1) > hop.purse.window // PIECES_IN_FLIGHT
            for hop in self._paid
        ):
            tokens = max(LEAST_PIECE_TOKENS, tokens // 2)
        return tokens

    def send(self, kind: Work, position: int, count: int, draws: int) -> bytes:
        """Count a step; returns the sealed sections that go along. Raises OverBudget, with nothing sent."""
        self._ratings.sent(self._now_s())
        renews = self._now_s() > self._leased_until_s - RENEW_S
        if renews:
            self._leased_on_s += LEASE_S
            self._leased_until_s += LEASE_S
        due: dict[int, int] = {}
        for place, hop in enumerate(self._hops):
            if hop is None:
                continue
            if renews:
                hop.purse.lease(LEASE_S)
            target = hop.purse.send(kind, position, count, draws)
            if target or renews:
                due[place] = target
        return pack(self._sealed(due)) if due else b""

    def answered(self) -> None:
        """The oldest step that waits was answered."""
        for hop in self._paid:
            hop.purse.answered()
        self._ratings.answered(self._now_s(), {hop.peer: hop.purse.computed_ns / 1e9 for hop in self._paid})

    @property
    def overrated(self) -> tuple[str, ...]:
        """The peers that are paid for more time than there was."""
        return self._ratings.overrated

    def answer(self, session: bytes, place: int, needed: int) -> Credit | None:
        """Return the voucher that a hop asks for, as far as it is owed; None for a hop that is not paid."""
        hop = self._hops[place]
        if hop is None:
            return None
        return Credit(session=session, sealed=tuple(self._sealed({place: hop.purse.asked(needed)})))

    def credit(self, session: bytes) -> Credit | None:
        """Return the message that pays for all that was answered; None where that is paid."""
        due: dict[int, int] = {}
        for place, hop in enumerate(self._hops):
            if hop is not None and (owed := hop.purse.last()):
                due[place] = owed
        return Credit(session=session, sealed=tuple(self._sealed(due))) if due else None

    def close(self) -> tuple[HopReceipt, ...]:
        """End the session; returns what each hop was paid for."""
        receipts = []
        for hop in self._paid:
            hop.purse.close()
            self._keeper.closed(hop)
            receipts.append(
                HopReceipt(
                    peer=hop.peer,
                    start=hop.start,
                    end=hop.end,
                    units={str(line): units for line, units in hop.purse.units.items()},
                    rated_ms=hop.purse.rated_ns / 1e6,
                    price_per_hour=hop.quote.price,
                    paid=hop.purse.spent,
                    currency=hop.quote.currency,
                    decimals=hop.quote.decimals,
                    channel=hop.purse.channel.id.hex(),
                )
            )
        return tuple(receipts)

    def _sealed(self, due: dict[int, int]) -> list[bytes]:
        """Return a section for each hop: by place, what its voucher has to come to."""
        sections = [b""] * len(self._hops)
        payments = [
            (place, hop, due[place]) for place, hop in enumerate(self._hops) if hop is not None and place in due
        ]
        if any(target > hop.purse.channel.ceiling for _, hop, target in payments):
            self._keeper.before_signing([hop for _, hop, _ in payments], [target for _, _, target in payments])
        for place, hop, target in payments:
            sections[place] = hop.seal.seal(pay_section(hop.purse.voucher(target), self._leased_on_s))
        return sections
