"""The embedded ledger: balances, channels and what happened to them, in one SQLite file.

The same verbs and verdicts as the contract (`ledger/contracts/channels.vy`), and the same vouchers, on chain 0 with the
bank's address as the contract. It enforces the accounting; that its credits are worth something is the promise of the
operator, who alone mints them. Who may ask for what is `bank_service.py`'s business: a `caller` here is authenticated.

Each verb is one transaction, and raises `Refused` with nothing changed, or BrokenStore if the disk fails. The present
is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from swarm_ledger import answered, starting_credit
from swarm_ledger.accounts import NOBODY, Address
from swarm_ledger.channels import (
    MAX_AMOUNT,
    ChannelId,
    ChannelKey,
    ChannelState,
    Claim,
    Domain,
    Voucher,
    VoucherDigests,
)
from swarm_ledger.currencies import CREDITS, Currency
from swarm_ledger.errors import (
    AlreadyClosing,
    BadAmount,
    BadParty,
    BrokenStore,
    ChannelExists,
    InsufficientFunds,
    NoChannel,
    NotClosing,
    NothingToClaim,
    TooEarly,
)
from swarm_ledger.ledger import ChannelEntry, Event, EventKind, Opening
from swarm_ledger.store_file import StoreFile, blob, number

CLOSE_DELAY_S: Final = 24 * 3600
MAX_SUPPLY: Final = 2**128 - 1  # so every sum of balances fits into the 16 bytes that amounts have

_VERSION = 1
_TABLES = (
    "CREATE TABLE IF NOT EXISTS books (one INTEGER PRIMARY KEY CHECK (one = 1), bank BLOB NOT NULL,"
    " currency TEXT NOT NULL, decimals INTEGER NOT NULL, minted BLOB NOT NULL, withdrawn BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS balances (account BLOB PRIMARY KEY, amount BLOB NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS channels (id BLOB PRIMARY KEY, payer BLOB NOT NULL, payee BLOB NOT NULL,"
    " signer BLOB NOT NULL, salt BLOB NOT NULL, allocated BLOB NOT NULL, claimed BLOB NOT NULL,"
    " closes_at_s INTEGER NOT NULL, is_closed INTEGER NOT NULL, CHECK (claimed <= allocated)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS open_by_payer ON channels (payer, id) WHERE NOT is_closed",
    "CREATE INDEX IF NOT EXISTS open_by_payee ON channels (payee, id) WHERE NOT is_closed",
    "CREATE TABLE IF NOT EXISTS events (number INTEGER PRIMARY KEY, account BLOB NOT NULL, at_s INTEGER NOT NULL,"
    " kind TEXT NOT NULL, amount BLOB NOT NULL, channel BLOB NOT NULL, other BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS events_by_account ON events (account, number)",
)


@dataclass(frozen=True, slots=True)
class Totals:
    """A bank's books: what is free and what is in channels was minted and not withdrawn."""

    free: int
    in_channels: int
    minted: int
    withdrawn: int


class Bank:
    """Everybody's money on one embedded ledger; `file` None keeps it in memory."""

    def __init__(
        self,
        file: Path | None,
        address: Address,
        *,
        currency: Currency = CREDITS,
        close_delay_s: int = CLOSE_DELAY_S,
    ) -> None:
        self.domain = Domain(0, address)
        self.currency = currency
        self.close_delay_s = close_delay_s
        self._digests = VoucherDigests(self.domain)
        tables = (*_TABLES, *answered.TABLES, *starting_credit.TABLES)
        self.store = StoreFile(file, kind=b"SwBk", version=_VERSION, tables=tables, is_durable=True)
        try:
            self._claim_books(address, currency)
        except BaseException:
            self.store.close()
            raise

    def close(self) -> None:
        """Give the file back."""
        self.store.close()

    def balance(self, account: Address) -> int:
        """Return what an account has free."""
        row = self.store.row("SELECT amount FROM balances WHERE account = ?", account)
        return 0 if row is None else number(row[0])

    def channel(self, channel: ChannelId) -> ChannelState | None:
        """Return what a channel holds; one that was closed stays known for ever."""
        row = self.store.row("SELECT allocated, claimed, closes_at_s, is_closed FROM channels WHERE id = ?", channel)
        return None if row is None else _state(*row)

    def channels(self, account: Address, *, after: bytes = b"", limit: int) -> list[ChannelEntry]:
        """Return open channels that an account pays from or is paid by, in the order of their ids."""
        columns = "id, payer, payee, signer, salt, allocated, claimed, closes_at_s, is_closed"
        one_side = f"SELECT {columns} FROM channels WHERE %s = ? AND id > ? AND NOT is_closed"  # noqa: S608
        query = f"{one_side % 'payer'} UNION ALL {one_side % 'payee'} ORDER BY id LIMIT ?"
        rows = self.store.rows(query, account, after, account, after, limit)
        return [
            ChannelEntry(ChannelKey(Address(payer), Address(payee), Address(signer), number(salt)), _state(*state))
            for _, payer, payee, signer, salt, *state in rows
        ]

    def history(self, account: Address, *, limit: int) -> list[Event]:
        """Return the latest events of an account, newest first."""
        query = "SELECT kind, at_s, amount, channel, other FROM events WHERE account = ? ORDER BY number DESC LIMIT ?"
        return [
            Event(
                kind, at_s, number(amount), ChannelId(channel) if channel else None, Address(other) if other else None
            )
            for kind, at_s, amount, channel, other in self.store.rows(query, account, limit)
        ]

    def totals(self) -> Totals:
        """Add everything up, which reads every account and channel: for the operator."""
        row = self.store.row("SELECT minted, withdrawn FROM books")
        assert row is not None
        free = sum(number(amount) for (amount,) in self.store.rows("SELECT amount FROM balances"))
        held = self.store.rows("SELECT allocated, claimed FROM channels WHERE NOT is_closed")
        in_channels = sum(number(allocated) - number(claimed) for allocated, claimed in held)
        return Totals(free, in_channels, number(row[0]), number(row[1]))

    def deposit(self, account: Address, amount: int, now_s: float) -> None:
        """Mint credits for an account, as the operator. Raises BadAmount."""
        with self.store.transaction():
            row = self.store.row("SELECT minted FROM books")
            assert row is not None
            minted = number(row[0]) + amount
            if amount <= 0 or minted > MAX_SUPPLY:
                raise BadAmount
            self.store.execute("UPDATE books SET minted = ?", blob(minted))
            self._add(account, amount)
            self._note("deposited", account, amount, now_s)

    def open(self, caller: Address, openings: Sequence[Opening], now_s: float) -> None:
        """Open channels from the caller's balance: all, or none.

        Raises BadParty, BadAmount, ChannelExists, InsufficientFunds.
        """
        with self.store.transaction():
            for opening in openings:
                key = ChannelKey(caller, opening.payee, opening.signer, opening.salt)
                if NOBODY in (key.payee, key.signer) or key.payee == caller:
                    raise BadParty
                if not 0 < opening.amount <= MAX_AMOUNT:
                    raise BadAmount
                channel = key.id
                if self.channel(channel) is not None:
                    raise ChannelExists
                self.store.execute(
                    "INSERT INTO channels VALUES (?, ?, ?, ?, ?, ?, ?, 0, 0)",
                    *(channel, caller, key.payee, key.signer, key.salt.to_bytes(32, "big")),
                    *(blob(opening.amount), blob(0)),
                )
                self._note_channel("opened", key, opening.amount, now_s)
            self._add(caller, -sum(opening.amount for opening in openings))

    def top_up(self, caller: Address, key: ChannelKey, amount: int, now_s: float) -> None:
        """Add to a channel from its payer's balance; a close that was asked for is off.

        Raises NoChannel, BadAmount, InsufficientFunds.
        """
        with self.store.transaction():
            state = self._open_state(key, caller)
            if amount <= 0 or state.allocated + amount > MAX_AMOUNT:
                raise BadAmount
            self._add(caller, -amount)
            self._put(key.id, replace(state, allocated=state.allocated + amount, closes_at_s=0))
            self._note_channel("topped up", key, amount, now_s)

    def redeem(self, claims: Sequence[Claim], now_s: float) -> int:
        """Pay vouchers to their payees, whoever asks; returns how much that was.

        One that is not the highest any more is passed over, one above the allocation pays what there is.
        Raises BadSignature, BadAmount, NothingToClaim.
        """
        with self.store.transaction():
            paid = sum(self._claim(claim, now_s) for claim in claims)
            if paid == 0:
                raise NothingToClaim
        return paid

    def request_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        """Let a channel's payer finish it after the delay. Raises NoChannel, AlreadyClosing."""
        with self.store.transaction():
            state = self._open_state(key, caller)
            if state.closes_at_s:
                raise AlreadyClosing
            self._put(key.id, replace(state, closes_at_s=int(now_s) + self.close_delay_s))
            self._note_channel("closing", key, 0, now_s)

    def finish_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        """Give a channel's rest back to its payer: at once if its payee asks, else after the delay.

        Raises NoChannel, NotClosing, TooEarly.
        """
        with self.store.transaction():
            state = self._open_state(key)
            if caller != key.payee:
                if not state.closes_at_s:
                    raise NotClosing
                if now_s < state.closes_at_s:
                    raise TooEarly
            refund = state.allocated - state.claimed
            self._put(key.id, replace(state, is_closed=True))
            self._add(key.payer, refund)
            self._note_channel("closed", key, refund, now_s)

    def withdraw(self, caller: Address, amount: int, to: Address, now_s: float) -> None:
        """Take credits of the caller out of the books, for what the operator gives `to` instead of them.

        Raises BadParty, BadAmount, InsufficientFunds.
        """
        with self.store.transaction():
            if to in (NOBODY, self.domain.contract):
                raise BadParty
            if amount <= 0:
                raise BadAmount
            self._add(caller, -amount)
            row = self.store.row("SELECT withdrawn FROM books")
            assert row is not None
            self.store.execute("UPDATE books SET withdrawn = ?", blob(number(row[0]) + amount))
            self._note("withdrawn", caller, amount, now_s, other=to)

    def _claim(self, claim: Claim, now_s: float) -> int:
        key, channel = claim.key, claim.key.id
        self._digests.check(Voucher(channel, claim.cumulative, claim.signature), key.signer)
        state = self.channel(channel)
        if state is None or state.is_closed:
            return 0
        claimed = min(claim.cumulative, state.allocated)
        paid = claimed - state.claimed
        if paid <= 0:
            return 0
        self._put(channel, replace(state, claimed=claimed))
        self._add(key.payee, paid)
        self._note_channel("claimed", key, paid, now_s)
        return paid

    def _open_state(self, key: ChannelKey, caller: Address | None = None) -> ChannelState:
        state = self.channel(key.id)
        if state is None or state.is_closed or caller not in (None, key.payer):
            raise NoChannel
        return state

    def _put(self, channel: ChannelId, state: ChannelState) -> None:
        self.store.execute(
            "UPDATE channels SET allocated = ?, claimed = ?, closes_at_s = ?, is_closed = ? WHERE id = ?",
            *(blob(state.allocated), blob(state.claimed), state.closes_at_s, int(state.is_closed), channel),
        )

    def _add(self, account: Address, amount: int) -> None:
        balance = self.balance(account) + amount
        if balance < 0:
            raise InsufficientFunds
        self.store.execute(
            "INSERT INTO balances VALUES (?, ?) ON CONFLICT (account) DO UPDATE SET amount = excluded.amount",
            *(account, blob(balance)),
        )

    def _note_channel(self, kind: EventKind, key: ChannelKey, amount: int, now_s: float) -> None:
        self._note(kind, key.payer, amount, now_s, key.id, key.payee)
        self._note(kind, key.payee, amount, now_s, key.id, key.payer)

    def _note(
        self, kind: EventKind, account: Address, amount: int, now_s: float, channel: bytes = b"", other: bytes = b""
    ) -> None:
        self.store.execute(
            "INSERT INTO events (account, at_s, kind, amount, channel, other) VALUES (?, ?, ?, ?, ?, ?)",
            *(account, int(now_s), kind, blob(amount), channel, other),
        )

    def _claim_books(self, address: Address, currency: Currency) -> None:
        with self.store.transaction():
            row = self.store.row("SELECT bank, currency, decimals FROM books")
            if row is None:
                self.store.execute(
                    "INSERT INTO books VALUES (1, ?, ?, ?, ?, ?)",
                    *(address, currency.symbol, currency.decimals, blob(0), blob(0)),
                )
            elif row != (address, currency.symbol, currency.decimals):
                raise BrokenStore(file=self.store.name, reason="it belongs to a bank of another key or currency")


def _state(allocated: Any, claimed: Any, closes_at_s: Any, is_closed: Any) -> ChannelState:
    return ChannelState(number(allocated), number(claimed), closes_at_s, bool(is_closed))
