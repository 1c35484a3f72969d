"""What is said to the contract and what it answers, as bytes; pure.

Owns the shipped ABI and bytecode (`contract.json`, made by `ledger/contracts/compile.py`), the encoding of calls, the
reading of results and events, and the meaning of reverts. Knows no chain: `evm_ledger.py` sends these bytes to one, and
tests to an EVM of their own.
"""

import functools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from eth_abi.abi import decode, encode
from eth_abi.exceptions import DecodingError

from swarm_ledger.accounts import ADDRESS_BYTES, SIGNATURE_BYTES, Address, keccak
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim
from swarm_ledger.errors import REFUSALS, BadAmount, BadSignature, ContractReverted, LedgerError
from swarm_ledger.ledger import EventKind, Opening

MOST_OPENINGS: Final = 64  # in one transaction, as in the contract
MOST_CLAIMS: Final = 64
MOST_CHANNELS: Final = 128

_ERROR_SELECTOR: Final = keccak(b"Error(string)")[:4].hex()
_REVERTED: Final = re.compile(r"revert(?:ed)?(?: with reason string)?:? *'?([a-z ]*)'?", re.IGNORECASE)
_KINDS: Final[dict[str, EventKind]] = {
    "Deposited": "deposited",
    "Opened": "opened",
    "ToppedUp": "topped up",
    "Claimed": "claimed",
    "Closing": "closing",
    "Closed": "closed",
    "Withdrawn": "withdrawn",
}


@dataclass(frozen=True, slots=True)
class Line:
    """One event of the contract; `account` is whose money it is about, `other` who else had part in it."""

    kind: EventKind
    account: Address
    amount: int  # 0 for a request to close
    channel: ChannelId | None
    other: Address | None  # of a withdrawal the receiver
    opened: ChannelKey | None  # only of an opening
    block: int
    index: int
    transaction: str
    contract: Address
    at_s: int | None  # where the endpoint says it with the event


def _type_of(entry: Mapping[str, Any]) -> str:
    """Return a type as signatures write it: a tuple by its members."""
    kind = str(entry["type"])
    if not kind.startswith("tuple"):
        return kind
    return f"({','.join(_type_of(each) for each in entry['components'])}){kind.removeprefix('tuple')}"


class Abi:
    """Functions and events of a contract, by name."""

    def __init__(self, entries: Sequence[Mapping[str, Any]]) -> None:
        self._inputs: dict[str, list[str]] = {}
        self._outputs: dict[str, list[str]] = {}
        self._selectors: dict[str, bytes] = {}
        self._events: dict[bytes, Mapping[str, Any]] = {}
        for entry in entries:
            types = [_type_of(each) for each in entry.get("inputs", ())]
            name = entry.get("name", entry["type"])
            digest = keccak(f"{name}({','.join(types)})".encode())
            if entry["type"] == "event":
                self._events[digest] = entry
            else:
                self._inputs[name] = types
                self._outputs[name] = [_type_of(each) for each in entry.get("outputs", ())]
                self._selectors[name] = digest[:4]

    def call(self, function: str, *arguments: Any) -> bytes:
        """Return the data of a call."""
        return self._selectors[function] + encode(self._inputs[function], arguments)

    def constructor(self, *arguments: Any) -> bytes:
        """Return what stands behind the code of a new contract."""
        return encode(self._inputs["constructor"], arguments)

    def result(self, function: str, data: bytes) -> Any:
        """Return what a function has answered; of several values a tuple. Raises ValueError for other bytes."""
        try:
            values = decode(self._outputs[function], data)
        except DecodingError as error:
            raise ValueError(f"{function} answered {len(data)} bytes that it cannot have") from error
        return values[0] if len(values) == 1 else values

    def topic(self, event: str) -> bytes:
        """Return the first topic of an event."""
        return next(digest for digest, entry in self._events.items() if entry["name"] == event)

    def event(self, topics: Sequence[bytes], data: bytes) -> tuple[str, dict[str, Any]] | None:
        """Return an event's name and values; None for one that is not this contract's. Addresses are bytes."""
        entry = self._events.get(bytes(topics[0])) if topics else None
        if entry is None:
            return None
        indexed = [each for each in entry["inputs"] if each["indexed"]]
        others = [each for each in entry["inputs"] if not each["indexed"]]
        if len(topics) != 1 + len(indexed):
            return None
        values = {
            each["name"]: decode([each["type"]], bytes(topic))[0]
            for each, topic in zip(indexed, topics[1:], strict=True)
        }
        values.update(
            zip(
                (each["name"] for each in others),
                decode([each["type"] for each in others], data),
                strict=True,
            )
        )
        addresses = {each["name"] for each in entry["inputs"] if each["type"] == "address"}
        return entry["name"], {name: _address(value) if name in addresses else value for name, value in values.items()}


@dataclass(frozen=True, slots=True)
class Shipped:
    """What the package brings along."""

    abi: Abi
    bytecode: bytes
    runtime: bytes

    def deployment(self, token: Address, close_delay_s: int) -> bytes:
        """Return the data of the transaction that makes a new contract."""
        return self.bytecode + self.abi.constructor(token, close_delay_s)

    def is_code_of(self, code: bytes) -> bool:
        """Whether code on a chain is this contract's: ours, with its immutables (five words) behind it."""
        return code.startswith(self.runtime) and len(code) == len(self.runtime) + 5 * 32


@functools.cache
def shipped() -> Shipped:
    """Return the contract as it was compiled for this release."""
    text = resources.files("swarm_ledger.evm").joinpath("contract.json").read_text(encoding="utf-8")
    found = json.loads(text)
    return Shipped(
        Abi(found["abi"]),
        bytes.fromhex(found["bytecode"].removeprefix("0x")),
        bytes.fromhex(found["runtime"].removeprefix("0x")),
    )


ERC20: Final = Abi(
    [
        {
            "type": "function",
            "name": name,
            "inputs": [{"type": each} for each in inputs],
            "outputs": [{"type": output}],
        }
        for name, inputs, output in (
            ("approve", ("address", "uint256"), "bool"),
            ("allowance", ("address", "address"), "uint256"),
            ("balanceOf", ("address",), "uint256"),
            ("decimals", (), "uint8"),
            ("symbol", (), "string"),
        )
    ]
)


def deposit(amount: int) -> bytes:
    return shipped().abi.call("deposit", amount)


def deposit_open(amount: int, openings: Sequence[Opening]) -> bytes:
    rows = [(each.payee, each.signer, each.salt, each.amount) for each in openings]
    return shipped().abi.call("deposit_open", amount, rows)


def top_up(key: ChannelKey, amount: int) -> bytes:
    return shipped().abi.call("top_up", key.payee, key.signer, key.salt, amount)


def redeem(claims: Sequence[Claim]) -> bytes:
    """Raises BadSignature, BadAmount for claims that no ledger could pay."""
    return shipped().abi.call("redeem", [_claim_row(claim) for claim in claims])


def request_close(key: ChannelKey) -> bytes:
    return shipped().abi.call("request_close", key.payee, key.signer, key.salt)


def finish_close(key: ChannelKey) -> bytes:
    return shipped().abi.call("finish_close", key.payer, key.payee, key.signer, key.salt)


def withdraw(amount: int, receiver: Address) -> bytes:
    return shipped().abi.call("withdraw", amount, receiver)


def read_states(data: bytes) -> list[ChannelState | None]:
    """Return the channels that `channel_states` has answered; None for ids that were never used."""
    return [
        ChannelState(allocated, claimed, closes_at_s, is_closed) if allocated else None
        for allocated, claimed, closes_at_s, is_closed in shipped().abi.result("channel_states", data)
    ]


def read_line(log: Mapping[str, Any]) -> Line | None:
    """Return one line of the contract's log; None for what is none of its events."""
    found = shipped().abi.event(log["topics"], bytes(log["data"]))
    if found is None:
        return None
    name, values = found
    channel = ChannelId(values["channel"]) if "channel" in values else None
    opened = None
    if name == "Opened":
        opened = ChannelKey(values["payer"], values["payee"], values["signer"], values["salt"])
    return Line(
        kind=_KINDS[name],
        account=_address(bytes(log["topics"][1])[-ADDRESS_BYTES:].hex()),
        amount=values.get("amount", values.get("refunded", 0)),
        channel=channel,
        other=values.get("payer" if name == "Claimed" else "payee", values.get("receiver")),
        opened=opened,
        block=log["blockNumber"],
        index=log["logIndex"],
        transaction="0x" + bytes(log["transactionHash"]).hex(),
        contract=_address(log["address"]),
        at_s=_timestamp(log.get("blockTimestamp")),
    )


def revert_reason(message: str, data: object) -> str | None:
    """Return the reason of a revert from what endpoints say of it, "" if it has none; None if it is no revert.

    Clients differ: some give the ABI's `Error(string)` as data, some write the reason into their message.
    """
    if isinstance(data, Mapping):  # as some forward it
        data = data.get("data", "")
    if isinstance(data, str) and (start := data.find(_ERROR_SELECTOR)) >= 0:
        try:
            return str(decode(["string"], bytes.fromhex(data[start + len(_ERROR_SELECTOR) :]))[0])
        except (DecodingError, ValueError, OverflowError):
            return ""
    found = _REVERTED.search(message)
    return None if found is None else found[1].strip()


def refusal(reason: str, transaction: str = "") -> LedgerError:
    """Return the error that a revert's reason stands for."""
    kind = REFUSALS.get(reason)
    return kind() if kind else ContractReverted(reason=reason, transaction=transaction)


def _claim_row(claim: Claim) -> tuple[Any, ...]:
    if len(claim.signature) != SIGNATURE_BYTES:
        raise BadSignature
    if not 0 <= claim.cumulative < 1 << 128:
        raise BadAmount
    key, half = claim.key, SIGNATURE_BYTES // 2
    return (
        key.payer,
        key.payee,
        key.signer,
        key.salt,
        claim.cumulative,
        claim.signature[:half],
        claim.signature[half:],
    )


def _address(text: str) -> Address:
    raw = bytes.fromhex(text.removeprefix("0x"))
    assert len(raw) == ADDRESS_BYTES
    return Address(raw)


def _timestamp(value: object) -> int | None:
    if isinstance(value, str):  # not in the list of fields that web3 turns into integers
        return int(value, 16)
    return value if isinstance(value, int) else None
