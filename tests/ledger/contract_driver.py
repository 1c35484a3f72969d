"""The contract behind the bank's methods, whatever machine runs it, so that one history drives both."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from eth_abi import decode, encode

from swarm_ledger.accounts import NOBODY, Account, Address, keccak
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.ledger import Opening
from tests.ledger.histories import DELAY_S

SOURCE = Path(__file__).parents[2] / "ledger" / "contracts" / "channels.vy"
SHIPPED = Path(__file__).parents[2] / "ledger" / "swarm_ledger" / "evm" / "contract.json"
DEPLOYER_ACCOUNT = Account(bytes([0x66]) * 32)
DEPLOYER = DEPLOYER_ACCOUNT.address
_TYPES = {
    "balance_of": ["address"],
    "channel_states": ["bytes32[]"],
    "deposit": ["uint256"],
    "deposit_open": ["uint256", "(address,address,uint256,uint256)[]"],
    "top_up": ["address", "address", "uint256", "uint256"],
    "redeem": ["(address,address,address,uint256,uint128,bytes32,bytes32)[]"],
    "request_close": ["address", "address", "uint256"],
    "finish_close": ["address", "address", "address", "uint256"],
    "withdraw": ["uint256", "address"],
    "domain_separator": [],
}
READS = {"balance_of", "channel_states", "domain_separator"}


class ContractDriver(ABC):
    """A deployment of its own, in the chain's coin, with rich accounts; subclasses run its code."""

    domain: Domain

    @property
    def separator(self) -> bytes:
        """The domain that the contract itself computes."""
        return self._call(DEPLOYER, "domain_separator", [])

    @property
    @abstractmethod
    def held(self) -> int:
        """The coins of the contract."""

    def balance(self, account: Address) -> int:
        return int.from_bytes(self._call(DEPLOYER, "balance_of", [text(account)]), "big")

    def channel(self, channel: ChannelId) -> ChannelState | None:
        found = self._call(DEPLOYER, "channel_states", [[channel]])
        ((allocated, claimed, closes_at_s, is_closed),) = decode(["(uint256,uint256,uint256,bool)[]"], found)[0]
        return ChannelState(allocated, claimed, closes_at_s, is_closed) if allocated else None

    def deposit(self, account: Address, amount: int, now_s: float) -> None:
        self._at(now_s)._call(account, "deposit", [amount], value=amount)

    def open(self, caller: Address, openings: Sequence[Opening], now_s: float) -> None:
        rows = [(text(each.payee), text(each.signer), each.salt, each.amount) for each in openings]
        self._at(now_s)._call(caller, "deposit_open", [0, rows])

    def top_up(self, caller: Address, key: ChannelKey, amount: int, now_s: float) -> None:
        self._at(now_s)._call(_as_payer(caller, key), "top_up", [text(key.payee), text(key.signer), key.salt, amount])

    def redeem(self, claims: Sequence[Claim], now_s: float) -> int:
        rows = [
            (
                *(text(claim.key.payer), text(claim.key.payee), text(claim.key.signer), claim.key.salt),
                *(claim.cumulative, claim.signature[:32], claim.signature[32:]),
            )
            for claim in claims
        ]
        return int.from_bytes(self._at(now_s)._call(DEPLOYER, "redeem", [rows]), "big")

    def request_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        self._at(now_s)._call(_as_payer(caller, key), "request_close", [text(key.payee), text(key.signer), key.salt])

    def finish_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        parties = [text(key.payer), text(key.payee), text(key.signer), key.salt]
        self._at(now_s)._call(caller, "finish_close", parties)

    def withdraw(self, caller: Address, amount: int, to: Address, now_s: float) -> None:
        self._at(now_s)._call(caller, "withdraw", [amount, text(to)])

    @abstractmethod
    def _at(self, now_s: float) -> Self:
        """Let the next call happen then."""

    def _call(self, caller: Address, method: str, values: list[Any], value: int = 0) -> bytes:
        types = _TYPES[method]
        selector = keccak(f"{method}({','.join(types)})".encode())[:4]
        return self._run(caller, selector + encode(types, values), value, reads=method in READS)

    @abstractmethod
    def _run(self, caller: Address, data: bytes, value: int, *, reads: bool) -> bytes:
        """Call the contract; what only reads need not be a transaction. Raises Refused."""


def code_for(bytecode: str) -> bytes:
    """Return what deploys the contract."""
    return bytes.fromhex(bytecode.removeprefix("0x")) + encode(["address", "uint256"], [text(NOBODY), DELAY_S])


def _as_payer(caller: Address, key: ChannelKey) -> Address:
    """The contract takes its caller for the payer: to others, it is as if there were no such channel."""
    return caller if caller == key.payer else DEPLOYER


def text(address: bytes) -> str:
    return f"0x{address.hex()}"
