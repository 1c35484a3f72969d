"""What a client must not forget of the channels that it pays from: up to where it may have signed, and what it spent.

Plugs into `spending.py`. A channel's **ceiling** is written before anything above its last one is signed, in steps that
are large enough for most vouchers to need no writing, and counts as spent on its day until the channel is put away. So
a client that was killed believes to have signed and spent no less than it has. `put_away` brings a ceiling down to the
best voucher; a channel whose ceiling is above it was not put away: its payee is asked for the voucher, and what was
reserved stays spent, as the payee may hold back a higher one.

Keys of channels stand in the file: each can pay one payee what one channel holds. The wallet's key does not.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from swarm_ledger.accounts import Account, Address
from swarm_ledger.channels import ChannelId, ChannelKey, Domain, Voucher, VoucherDigests
from swarm_ledger.errors import OverBudget
from swarm_ledger.spending import SpendingChannel
from swarm_ledger.store_file import StoreFile, blob, number

STEPS: Final = 16  # in which a whole allocation is signed away, at least

_VERSION = 1
_TABLES: Final = (
    "CREATE TABLE IF NOT EXISTS channels (id BLOB PRIMARY KEY, chain_id INTEGER NOT NULL, contract BLOB NOT NULL,"
    " payer BLOB NOT NULL, payee BLOB NOT NULL, signer_secret BLOB NOT NULL, salt BLOB NOT NULL,"
    " allocated BLOB NOT NULL, ceiling BLOB NOT NULL, cumulative BLOB NOT NULL, signature BLOB NOT NULL,"
    " sent BLOB NOT NULL, done BLOB NOT NULL, lost BLOB NOT NULL,"
    " day INTEGER NOT NULL, currency TEXT NOT NULL, reserved BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS spending (day INTEGER, currency TEXT, amount BLOB NOT NULL,"
    " PRIMARY KEY (day, currency)) WITHOUT ROWID",
)


@dataclass(frozen=True, slots=True)
class Raise:
    """Up to where a channel is about to sign."""

    channel: SpendingChannel
    cumulative: int


class ClientStore:
    """All channels of one client, on any ledger; `file` None keeps them in memory."""

    def __init__(self, file: Path | None) -> None:
        self._file = StoreFile(file, kind=b"SwCl", version=_VERSION, tables=_TABLES, is_durable=True)
        try:
            with self._file.transaction():
                self._file.execute("UPDATE channels SET reserved = ? WHERE ceiling > cumulative", blob(0))
        except BaseException:
            self._file.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self._file.close()

    def add(self, key: ChannelKey, signer: Account, domain: Domain) -> SpendingChannel:
        """Write a channel that is about to be opened, so that its key survives; it holds nothing yet."""
        assert signer.address == key.signer
        nothing = blob(0)
        with self._file.transaction():
            self._file.execute(
                "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, x'', ?, ?, ?, 0, '', ?)",
                *(key.id, domain.chain_id, domain.contract, key.payer, key.payee, signer.secret),
                *(key.salt.to_bytes(32, "big"), nothing, nothing, nothing, nothing, nothing, nothing, nothing),
            )
        return _channel(key, signer, VoucherDigests(domain))

    def allocate(self, channel: SpendingChannel, allocated: int) -> None:
        """Write what a channel holds, once the ledger says so."""
        with self._file.transaction():
            self._file.execute("UPDATE channels SET allocated = ? WHERE id = ?", blob(allocated), channel.id)
        channel.allocated = allocated

    def channels(self, domain: Domain) -> list[SpendingChannel]:
        """Return the channels on one ledger as they were put away, or with `is_known` False."""
        digests = VoucherDigests(domain)
        found = self._file.rows(
            "SELECT payer, payee, signer_secret, salt, allocated, ceiling, cumulative, signature, sent, done, lost"
            " FROM channels WHERE chain_id = ? AND contract = ?",
            *(domain.chain_id, domain.contract),
        )
        channels = []
        for payer, payee, secret, salt, allocated, ceiling, cumulative, signature, sent, done, lost in found:
            signer = Account(secret)
            key = ChannelKey(Address(payer), Address(payee), signer.address, number(salt))
            channel = _channel(key, signer, digests)
            channel.allocated, channel.ceiling = number(allocated), number(ceiling)
            channel.best = Voucher(key.id, number(cumulative), signature)
            channel.sent, channel.done, channel.lost = number(sent), number(done), number(lost)
            channel.is_known = channel.ceiling == channel.best.cumulative
            channels.append(channel)
        return channels

    def forget(self, channel: ChannelId) -> None:
        """Delete a channel that the ledger has closed."""
        with self._file.transaction():
            self._file.execute("DELETE FROM channels WHERE id = ?", channel)

    def raise_ceilings(self, raises: Sequence[Raise], *, day: int, currency: str, limit: int | None = None) -> None:
        """Write up to where channels will sign, before they do; does nothing where they may sign so much already.

        `limit`: what may be spent on that day in that currency. Raises OverBudget, with nothing changed.
        """
        wanted = [(each.channel, min(each.cumulative, each.channel.allocated)) for each in raises]
        due = [(channel, cumulative) for channel, cumulative in wanted if cumulative > channel.ceiling]
        if not due:
            return
        raised: list[tuple[SpendingChannel, int]] = []
        with self._file.transaction():
            spent = self.spent(day, currency)
            needed = sum(cumulative - channel.ceiling for channel, cumulative in due)
            if limit is not None and spent + needed > limit:
                raise OverBudget(spent=f"{spent} {currency}", limit=f"{limit} {currency}", what="of the day")
            spare = None if limit is None else limit - spent - needed
            for channel, cumulative in due:
                ahead = min(channel.allocated // STEPS, channel.allocated - cumulative)
                if spare is not None:
                    ahead = min(ahead, spare)
                    spare -= ahead
                self._reserve(channel, cumulative + ahead, day, currency)
                raised.append((channel, cumulative + ahead))
        for channel, ceiling in raised:
            channel.ceiling = ceiling

    def put_away(self, channels: Iterable[SpendingChannel]) -> None:
        """Write channels that no session pays from now: what was reserved and not signed is not spent."""
        put = list(channels)
        with self._file.transaction():
            for channel in put:
                self._release(channel)
                self._file.execute(
                    "UPDATE channels SET ceiling = ?, cumulative = ?, signature = ?, sent = ?, done = ?, lost = ?"
                    " WHERE id = ?",
                    *(blob(channel.best.cumulative), blob(channel.best.cumulative), channel.best.signature),
                    *(blob(channel.sent), blob(channel.done), blob(channel.lost), channel.id),
                )
        for channel in put:
            channel.ceiling = channel.best.cumulative

    def spent(self, day: int, currency: str) -> int:
        """Return what was signed on a day at most, in one currency."""
        row = self._file.row("SELECT amount FROM spending WHERE day = ? AND currency = ?", day, currency)
        return 0 if row is None else number(row[0])

    def _reserve(self, channel: SpendingChannel, ceiling: int, day: int, currency: str) -> None:
        amount = ceiling - channel.ceiling
        row = self._file.row("SELECT day, currency, reserved FROM channels WHERE id = ?", channel.id)
        assert row is not None, "a channel that was never added"
        before = number(row[2]) if row[:2] == (day, currency) else 0
        self._file.execute(
            "UPDATE channels SET ceiling = ?, day = ?, currency = ?, reserved = ? WHERE id = ?",
            *(blob(ceiling), day, currency, blob(before + amount), channel.id),
        )
        self._file.execute(
            "INSERT INTO spending VALUES (?, ?, ?) ON CONFLICT (day, currency) DO UPDATE SET amount = excluded.amount",
            *(day, currency, blob(self.spent(day, currency) + amount)),
        )

    def _release(self, channel: SpendingChannel) -> None:
        query = "SELECT ceiling, day, currency, reserved FROM channels WHERE id = ?"
        row = self._file.row(query, channel.id)
        assert row is not None, "a channel that was never added"
        day, currency = row[1], row[2]
        unsigned = min(max(0, number(row[0]) - channel.best.cumulative), number(row[3]))
        if unsigned:
            self._file.execute(
                "UPDATE spending SET amount = ? WHERE day = ? AND currency = ?",
                *(blob(self.spent(day, currency) - unsigned), day, currency),
            )
        self._file.execute("UPDATE channels SET reserved = ? WHERE id = ?", blob(0), channel.id)


def _channel(key: ChannelKey, signer: Account, digests: VoucherDigests) -> SpendingChannel:
    return SpendingChannel(
        key=key,
        id=key.id,
        signer=signer,
        digests=digests,
        allocated=0,
        best=Voucher(key.id, 0, b""),
        sent=0,
        done=0,
        lost=0,
        ceiling=0,
    )
