"""What a node must not forget of the channels that pay it: the best voucher of each, and what was redeemed.

Plugs into `earning.py`: `save` writes what `Earnings.unsaved` lists, `restore` gives it back. The end of the process
loses nothing that was saved; the end of the machine loses what was saved since the file was last synchronized, which
`save` does as soon as that is worth the window. The node calls it after each step, the redeemer after each redemption.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_ledger.accounts import Address
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Domain, Voucher
from swarm_ledger.earning import EarningChannel, Earnings
from swarm_ledger.errors import BrokenStore
from swarm_ledger.store_file import StoreFile, blob, number

_VERSION = 1
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS owner (one INTEGER PRIMARY KEY CHECK (one = 1), chain_id INTEGER NOT NULL,"
    " contract BLOB NOT NULL, payee BLOB NOT NULL, synchronized INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS channels (id BLOB PRIMARY KEY, payer BLOB NOT NULL, signer BLOB NOT NULL,"
    " salt BLOB NOT NULL, cumulative BLOB NOT NULL, signature BLOB NOT NULL, allocated BLOB NOT NULL,"
    " claimed BLOB NOT NULL, closes_at_s INTEGER NOT NULL, is_closed INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS redemptions (number INTEGER PRIMARY KEY, at_s INTEGER NOT NULL,"
    " amount BLOB NOT NULL, vouchers INTEGER NOT NULL, reference TEXT NOT NULL)",
)


@dataclass(frozen=True, slots=True)
class Redemption:
    """One collection of vouchers; `reference` names its transaction, if it has one."""

    at_s: int
    amount: int
    vouchers: int
    reference: str = ""


@dataclass(frozen=True, slots=True)
class EarnedTotals:
    """What all channels that the store knows come to."""

    paid: int  # by vouchers
    redeemed: int
    unclaimed: int  # what the ledger would still pay for them


class NodeStore:
    """The vouchers of one payee on one ledger; `file` None keeps them in memory."""

    def __init__(self, file: Path | None, domain: Domain, payee: Address) -> None:
        self._payee = payee
        self._synchronized: dict[ChannelId, int] = {}  # the cumulative of each channel that survives the machine
        self._states: dict[ChannelId, ChannelState] = {}  # as they stand in the file
        self._at_risk: dict[ChannelId, int] = {}  # and of those that were saved since
        self._file = StoreFile(file, kind=b"SwNo", version=_VERSION, tables=_TABLES, is_durable=False)
        try:
            self._claim_file(domain)
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def restore(self, earnings: Earnings) -> None:
        """Hand back every channel that was not closed; their states are as old as their last saving."""
        query = (
            "SELECT payer, signer, salt, cumulative, signature, allocated, claimed, closes_at_s FROM channels"
            " WHERE NOT is_closed"
        )
        for payer, signer, salt, cumulative, signature, allocated, claimed, closes_at_s in self._file.rows(query):
            key = ChannelKey(Address(payer), self._payee, Address(signer), number(salt))
            best = Voucher(key.id, number(cumulative), signature)
            earnings.restore(key, best, ChannelState(number(allocated), number(claimed), closes_at_s))
            self._synchronized[key.id] = best.cumulative

    def save(self, earnings: Earnings, *, most_at_risk: int) -> bool:
        """Write the channels in `unsaved`; returns whether they survive the end of the machine, too.

        They do as soon as what would be lost with it has reached `most_at_risk`; at 0, all that was ever saved does.
        """
        saved = list(earnings.unsaved.values())
        at_risk = {**self._at_risk, **{channel.id: channel.best.cumulative for channel in saved}}
        lost = sum(cumulative - self._synchronized.get(channel, 0) for channel, cumulative in at_risk.items())
        is_durable = lost >= most_at_risk
        if saved or (is_durable and at_risk):
            with self._transaction(at_risk, is_durable=is_durable):
                # Mostly only the vouchers have changed, which is a third of the work.
                self._file.execute_many(
                    "UPDATE channels SET cumulative = ?, signature = ? WHERE id = ? AND cumulative < ?",
                    [
                        (cumulative := blob(channel.best.cumulative), channel.best.signature, channel.id, cumulative)
                        for channel in saved
                        if self._states.get(channel.id) == channel.state
                    ],
                )
                changed = [channel for channel in saved if self._states.get(channel.id) != channel.state]
                for channel in changed:
                    self._put(channel)
            self._states.update((channel.id, channel.state) for channel in changed)
            for channel in saved:
                del earnings.unsaved[channel.id]
        return is_durable

    def record(self, redemption: Redemption, channels: Iterable[EarningChannel]) -> None:
        """Write a redemption, and the channels as the ledger has them since."""
        redeemed = list(channels)
        with self._transaction(self._at_risk, is_durable=True):
            for channel in redeemed:
                self._put(channel)
            self._file.execute(
                "INSERT INTO redemptions (at_s, amount, vouchers, reference) VALUES (?, ?, ?, ?)",
                *(redemption.at_s, blob(redemption.amount), redemption.vouchers, redemption.reference),
            )
        self._states.update((channel.id, channel.state) for channel in redeemed)

    def redemptions(self, limit: int = 100) -> list[Redemption]:
        """Return the latest redemptions, newest first."""
        query = "SELECT at_s, amount, vouchers, reference FROM redemptions ORDER BY number DESC LIMIT ?"
        return [
            Redemption(at_s, number(amount), vouchers, reference)
            for at_s, amount, vouchers, reference in self._file.rows(query, limit)
        ]

    def totals(self) -> EarnedTotals:
        """Add all channels up, closed ones among them."""
        paid = redeemed = unclaimed = 0
        query = "SELECT cumulative, allocated, claimed, is_closed FROM channels"
        for cumulative, allocated, claimed, is_closed in self._file.rows(query):
            paid += number(cumulative)
            redeemed += number(claimed)
            if not is_closed:
                unclaimed += max(0, min(number(cumulative), number(allocated)) - number(claimed))
        return EarnedTotals(paid, redeemed, unclaimed)

    @contextmanager
    def _transaction(self, at_risk: dict[ChannelId, int], *, is_durable: bool) -> Iterator[None]:
        with self._file.transaction(is_durable=is_durable):
            yield
            if is_durable:
                # Only a transaction that writes something new synchronizes those before it.
                self._file.execute("UPDATE owner SET synchronized = synchronized + 1")
        if is_durable:
            self._synchronized.update(at_risk)
        self._at_risk = {} if is_durable else at_risk

    def _put(self, channel: EarningChannel) -> None:
        """Write a channel; its voucher only if it is higher than the one that stands there."""
        key, best, state = channel.key, channel.best, channel.state
        self._file.execute(
            "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET"
            " signature = CASE WHEN excluded.cumulative > cumulative THEN excluded.signature ELSE signature END,"
            " cumulative = max(cumulative, excluded.cumulative), allocated = excluded.allocated,"
            " claimed = excluded.claimed, closes_at_s = excluded.closes_at_s, is_closed = excluded.is_closed",
            *(channel.id, key.payer, key.signer, key.salt.to_bytes(32, "big")),
            *(blob(best.cumulative), best.signature, blob(state.allocated), blob(state.claimed)),
            *(state.closes_at_s, int(state.is_closed)),
        )

    def _claim_file(self, domain: Domain) -> None:
        with self._transaction({}, is_durable=True):
            row = self._file.row("SELECT chain_id, contract, payee FROM owner")
            if row is None:
                values = (domain.chain_id, domain.contract, self._payee)
                self._file.execute("INSERT INTO owner VALUES (1, ?, ?, ?, 0)", *values)
            elif row != (domain.chain_id, domain.contract, self._payee):
                raise BrokenStore(file=self._file.name, reason="its vouchers are for another ledger or another account")
