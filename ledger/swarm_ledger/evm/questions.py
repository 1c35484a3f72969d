"""What endpoints are asked, one function for each question; what they answer is checked here.

web3 passes much on as it came, so an endpoint's nonsense would surface far from it: whatever is not what it has to be
raises ValueError, TypeError or KeyError in here, which `endpoints.py` takes for the endpoint's failure. Called by
whoever asks, through `Endpoints.ask`.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from web3.eth import AsyncEth
from web3.exceptions import TransactionNotFound, Web3RPCError

from swarm_ledger.accounts import Address, address_text, parse_address
from swarm_ledger.evm import contract
from swarm_ledger.evm.contract import Line
from swarm_ledger.evm.fees import GasPrice

T = TypeVar("T")
Question = Callable[[AsyncEth], Awaitable[T]]
Block = int | Literal["latest"]
MOST_WAITING: Final = 256  # transactions of one account


@dataclass(frozen=True, slots=True)
class Call:
    """What a transaction does; `to` None makes a contract."""

    to: Address | None
    data: bytes = b""
    value: int = 0


@dataclass(frozen=True, slots=True)
class Receipt:
    """What has become of a transaction."""

    transaction: str
    block: int
    gas_used: int
    succeeded: bool
    lines: tuple[Line, ...]  # the ledger's events; look whose they are
    contract: Address | None  # a new one


async def chain_id(eth: AsyncEth) -> int:
    return _number(await eth.chain_id)


async def head(eth: AsyncEth) -> int:
    """The number of the last block."""
    return _number(await eth.block_number)


async def gas_price(eth: AsyncEth) -> GasPrice:
    block = await eth.get_block("latest")
    base_fee = _number(block["baseFeePerGas"])
    try:
        tip = _number(await eth.max_priority_fee)
    except Web3RPCError:  # an addition of geth that not all have
        tip = max(0, _number(await eth.gas_price) - base_fee)
    return GasPrice(base_fee, tip)


def time_of(block: int) -> Question[int]:
    async def question(eth: AsyncEth) -> int:
        return _number((await eth.get_block(block))["timestamp"])

    return question


def mined_nonces(account: Address, block: Block = "latest") -> Question[int]:
    """How many transactions of an account are in blocks, up to this one."""

    async def question(eth: AsyncEth) -> int:
        return _number(await eth.get_transaction_count(_text(account), block))

    return question


def next_nonce(account: Address) -> Question[int]:
    """The first nonce under which nothing is mined or waits. One far away would have to be reached by paying."""

    async def question(eth: AsyncEth) -> int:
        mined = await mined_nonces(account)(eth)
        known = _number(await eth.get_transaction_count(_text(account), "pending"))
        if known > mined + MOST_WAITING:
            raise ValueError("more waits than one account sends")
        return max(mined, known)

    return question


def coins(account: Address) -> Question[int]:
    async def question(eth: AsyncEth) -> int:
        return _number(await eth.get_balance(_text(account)))

    return question


def code(address: Address) -> Question[bytes]:
    async def question(eth: AsyncEth) -> bytes:
        return _bytes(await eth.get_code(_text(address)))

    return question


def gas(sender: Address, call: Call) -> Question[int]:
    """How much gas a transaction takes; a revert says why it would fail."""

    async def question(eth: AsyncEth) -> int:
        return _number(await eth.estimate_gas(_fields(call, sender)))

    return question


def result(
    call: Call, read: Callable[[bytes], T], block: Block = "latest", sender: Address | None = None
) -> Question[T]:
    """What a call returns, without sending it."""

    async def question(eth: AsyncEth) -> T:
        return read(_bytes(await eth.call(_fields(call, sender), block)))

    return question


def receipt(digest: bytes) -> Question[Receipt | None]:
    """The receipt of a transaction that is in a block."""

    async def question(eth: AsyncEth) -> Receipt | None:
        try:
            found: Any = await eth.get_transaction_receipt(digest)  # type: ignore[arg-type]
        except TransactionNotFound:
            return None
        made = found.get("contractAddress")
        return Receipt(
            transaction="0x" + _bytes(found["transactionHash"]).hex(),
            block=_number(found["blockNumber"]),
            gas_used=_number(found["gasUsed"]),
            succeeded=_number(found["status"]) == 1,
            lines=_lines(found["logs"]),
            contract=None if made is None else parse_address(made),
        )

    return question


def events(address: Address, topics: list[str | None], first_block: int, last_block: int) -> Question[tuple[Line, ...]]:
    """The ledger's events with these topics."""

    async def question(eth: AsyncEth) -> tuple[Line, ...]:
        asked: Any = {"address": _text(address), "topics": topics, "fromBlock": first_block, "toBlock": last_block}
        lines = _lines(await eth.get_logs(asked))
        return tuple(line for line in lines if line.contract == address)

    return question


def _lines(logs: Any) -> tuple[Line, ...]:
    if not isinstance(logs, list | tuple):
        raise TypeError("no list of events")
    return tuple(line for log in logs if (line := contract.read_line(log)) is not None)


def _fields(call: Call, sender: Address | None) -> Any:
    fields: dict[str, Any] = {"data": call.data, "value": call.value}
    if call.to is not None:
        fields["to"] = address_text(call.to)
    if sender is not None:
        fields["from"] = address_text(sender)
    return fields


def _text(address: Address) -> Any:  # web3 has a type of its own for texts with a checksum
    return address_text(address)


def _number(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("not a number")
    return value


def _bytes(value: object) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("not bytes")
    return value
