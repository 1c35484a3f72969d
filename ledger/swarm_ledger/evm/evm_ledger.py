"""The `Ledger` of an Ethereum chain: one account, one contract, several endpoints.

Before anything is signed, the contract's code on the chain is compared with the one that this release ships, so an
address that a stranger names is either this ledger or refused. Called by node and client where a quote or a setting
names a chain, and by `swarm-ledger`.
"""

from collections.abc import Sequence
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from swarm_ledger.accounts import NOBODY, Account, Address, address_text
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.currencies import ETHER, Currency
from swarm_ledger.errors import BadAmount, ContractReverted, NoSuchLedger, NothingToClaim
from swarm_ledger.evm import contract, questions
from swarm_ledger.evm.confirmations import as_it_counts, confirmed_block
from swarm_ledger.evm.contract import ERC20, MOST_CHANNELS, MOST_CLAIMS, MOST_OPENINGS
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.event_log import EventLog
from swarm_ledger.evm.questions import Block, Call, Receipt
from swarm_ledger.evm.sending import Sender, Sending
from swarm_ledger.ledger import ChannelEntry, Event, Opening
from swarm_ledger.redeeming import Cost

BATCH_GAS: Final = 35_000  # of a redemption, whatever it redeems; benchmarks/gas.py
CLAIM_GAS: Final = 15_500  # of each voucher in it
MOST_SYMBOL_CHARS: Final = 12
_OF_BOTH: Final = ("claimed", "closing", "closed")  # the kinds that stand in the payee's history and in the payer's


class EvmLedger:
    """Money of one account in the contract. Made by `connect`; an async context manager, or call `close`."""

    def __init__(
        self,
        endpoints: Endpoints,
        account: Account,
        domain: Domain,
        sending: Sending,
        *,
        token: Address | None,
        currency: Currency,
        close_delay_s: int,
        first_block: int,
    ) -> None:
        self._endpoints = endpoints
        self._sender = Sender(endpoints, account, domain.chain_id, sending)
        self._confirmations = sending.confirmations
        self._address = account.address
        self._domain = domain
        self._token = token
        self._currency = currency
        self._close_delay_s = close_delay_s
        self._first_block = first_block
        self._log = EventLog(endpoints, domain.contract, account.address, first_block)

    @classmethod
    async def connect(
        cls, endpoints: Endpoints, address: Address, account: Account, sending: Sending | None = None
    ) -> Self:
        """Find the contract at an address; the endpoints are then this ledger's to close.

        Raises NoSuchLedger if there is another contract, or none; WrongChain, LedgerUnreachable.
        """
        chain_id = await endpoints.chain_id()
        code = await endpoints.ask(questions.code(address))
        if not code:
            raise NoSuchLedger(address_text(address), chain_id, "there is no contract at this address")
        if not contract.shipped().is_code_of(code):
            raise NoSuchLedger(address_text(address), chain_id, "its code is not the ledger's of this release")
        read = _Reader(endpoints, address)
        token = Address(bytes.fromhex((await read("token")).removeprefix("0x")))
        return cls(
            endpoints,
            account,
            Domain(chain_id, address),
            sending or Sending(),
            token=None if token == NOBODY else token,
            currency=ETHER if token == NOBODY else await _token_currency(endpoints, token),
            close_delay_s=await read("close_delay"),
            first_block=await read("first_block"),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """End all connections; what was sent is not taken back."""
        await self._endpoints.close()

    @property
    def address(self) -> Address:
        return self._address

    @property
    def domain(self) -> Domain:
        return self._domain

    @property
    def currency(self) -> Currency:
        return self._currency

    @property
    def close_delay_s(self) -> int:
        return self._close_delay_s

    @property
    def token(self) -> Address | None:
        """The ERC-20 that it counts in; None: the chain's coin."""
        return self._token

    # -- what is read --------------------------------------------------------------------------------------------------

    async def balance(self) -> int:
        """Return the free balance: what was deposited counts when it is confirmed, what was spent at once."""
        confirmed, head = await self._blocks()
        return min([await self._balance_at(block) for block in {confirmed, head}])

    async def channel(self, channel: ChannelId) -> ChannelState | None:
        """Return a channel as it counts."""
        return (await self._states([channel]))[0]

    async def channels(self) -> Sequence[ChannelEntry]:
        """Return the open channels that the account pays from or is paid by."""
        opened = {line.channel: line.opened for line in await self._log.read() if line.opened and line.channel}
        states = await self._states(list(opened))
        return [
            ChannelEntry(key, state)
            for key, state in zip(opened.values(), states, strict=True)
            if state is not None and not state.is_closed
        ]

    async def history(self, limit: int = 100) -> Sequence[Event]:
        """Return the latest events of the account, newest first, those that may still be taken back among them."""
        lines = await self._log.read()
        own = [line for line in lines if line.account == self._address or line.kind in _OF_BOTH][::-1][:limit]
        times: dict[int, int] = {}
        for line in own:
            if line.block not in times:
                said = line.at_s
                times[line.block] = await self._time_of(line.block) if said is None else said
        return [
            Event(
                kind=line.kind,
                at_s=times[line.block],
                amount=line.amount,
                channel=line.channel,
                other=line.other if line.account == self._address else line.account,
                transaction=line.transaction,
            )
            for line in own
        ]

    async def coins(self) -> int:
        """Return what the account has of the chain's coin for gas, outside the ledger."""
        return await self._sender.coins()

    async def redeem_cost(self) -> Cost:
        """Return what redeeming costs in gas at the moment, in the chain's coin."""
        price = await self._sender.gas_price()
        wei = price.base_fee + price.tip
        return Cost(batch=BATCH_GAS * wei, claim=CLAIM_GAS * wei)

    # -- what changes something ----------------------------------------------------------------------------------------

    async def deposit(self, amount: int) -> None:
        """Put coins or tokens into the contract; tokens are approved first, exactly as many."""
        _check_amount(amount)
        await self._approve(amount)
        await self._send(contract.deposit(amount), 0 if self._token else amount)

    async def open(self, openings: Sequence[Opening], *, deposit: int = 0) -> None:
        """Open channels: all, or none. A deposit can be made in the same transaction, which costs less than two."""
        assert len(openings) <= MOST_OPENINGS, "more openings than fit into one transaction"
        if not openings:
            return
        for opening in openings:
            _check_amount(opening.amount)
        if deposit:
            await self._approve(deposit)
        await self._send(contract.deposit_open(deposit, openings), 0 if self._token else deposit)

    async def top_up(self, key: ChannelKey, amount: int) -> None:
        _check_amount(amount)
        await self._send(contract.top_up(key, amount))

    async def redeem(self, claims: Sequence[Claim]) -> int:
        """Collect vouchers, so many at a time as one transaction takes."""
        paid = 0
        for start in range(0, len(claims), MOST_CLAIMS):
            try:
                receipt = await self._send(contract.redeem(claims[start : start + MOST_CLAIMS]))
            except NothingToClaim:
                continue
            paid += sum(line.amount for line in receipt.lines)  # claims are all that it does
        if not paid:
            raise NothingToClaim
        return paid

    async def request_close(self, key: ChannelKey) -> None:
        await self._send(contract.request_close(key))

    async def finish_close(self, key: ChannelKey) -> None:
        await self._send(contract.finish_close(key))

    async def withdraw(self, amount: int, to: Address) -> None:
        _check_amount(amount)
        await self._send(contract.withdraw(amount, to))

    # -- parts ---------------------------------------------------------------------------------------------------------

    async def _send(self, data: bytes, value: int = 0) -> Receipt:
        return await self._sender.send(Call(self._domain.contract, data, value))

    async def _approve(self, amount: int) -> None:
        """Let the contract take so many tokens, if there is a token and it may not yet."""
        if self._token is None:
            return
        allowed = await self._token_result("allowance", self._address, self._domain.contract)
        if allowed >= amount:
            return
        if allowed:  # some tokens change an allowance only from and to nothing
            await self._sender.send(Call(self._token, ERC20.call("approve", self._domain.contract, 0)))
        await self._sender.send(Call(self._token, ERC20.call("approve", self._domain.contract, amount)))

    async def _token_result(self, function: str, *arguments: Any) -> Any:
        assert self._token is not None
        return await _Reader(self._endpoints, self._token, contract.ERC20)(function, *arguments)

    async def _blocks(self) -> tuple[int, int]:
        """Return the last block that counts, and the last one."""
        head = await self._endpoints.ask(questions.head)
        return confirmed_block(head, self._confirmations), head

    async def _balance_at(self, block: int) -> int:
        if block < self._first_block:
            return 0
        read = _Reader(self._endpoints, self._domain.contract, block=block)
        return int(await read("balance_of", self._address))

    async def _time_of(self, block: int) -> int:
        return await self._endpoints.ask(questions.time_of(block))

    async def _states(self, ids: Sequence[ChannelId]) -> list[ChannelState | None]:
        confirmed, head = await self._blocks()
        latest = await self._states_at(ids, head)
        old = latest if confirmed == head else await self._states_at(ids, confirmed)
        return [as_it_counts(*states) for states in zip(old, latest, strict=True)]

    async def _states_at(self, ids: Sequence[ChannelId], block: int) -> list[ChannelState | None]:
        if block < self._first_block:
            return [None] * len(ids)
        states: list[ChannelState | None] = []
        for start in range(0, len(ids), MOST_CHANNELS):
            data = contract.shipped().abi.call("channel_states", ids[start : start + MOST_CHANNELS])
            call = Call(self._domain.contract, data)
            states += await self._endpoints.ask(questions.result(call, contract.read_states, block))
        return states


def _check_amount(amount: int) -> None:
    if not 0 < amount < 1 << 256:
        raise BadAmount


class _Reader:
    """Asks one contract for single values."""

    def __init__(
        self, endpoints: Endpoints, address: Address, abi: contract.Abi | None = None, block: Block = "latest"
    ) -> None:
        self._endpoints = endpoints
        self._address = address
        self._abi = abi or contract.shipped().abi
        self._block = block

    async def __call__(self, function: str, *arguments: Any) -> Any:
        call = Call(self._address, self._abi.call(function, *arguments))
        return await self._endpoints.ask(questions.result(call, partial(self._abi.result, function), self._block))


def _read_symbol(data: bytes) -> str:
    """Return a symbol, which is a string in the standard and 32 bytes in tokens that are older."""
    try:
        return str(ERC20.result("symbol", data))
    except ValueError:
        return data[:32].rstrip(b"\0").decode("utf-8", errors="ignore")


async def _token_currency(endpoints: Endpoints, token: Address) -> Currency:
    """Return how a token's amounts are written; its names are a stranger's text."""
    if not await endpoints.ask(questions.code(token)):
        raise NoSuchLedger(address_text(token), await endpoints.chain_id(), "its token is no contract")
    decimals = int(await _Reader(endpoints, token, ERC20)("decimals"))
    try:
        symbol = await endpoints.ask(questions.result(Call(token, ERC20.call("symbol")), _read_symbol))
    except ContractReverted:
        symbol = ""
    return Currency("".join(c for c in symbol if c.isalnum())[:MOST_SYMBOL_CHARS] or "tokens", decimals)
