"""The contract on pyrevm, behind the bank's methods, so that one history drives both.

On chain 0, so that one signature is good for the contract and for a bank with its address.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyrevm
from eth_abi import decode, encode

from swarm_ledger.accounts import NOBODY, Account, Address, keccak
from swarm_ledger.channels import ChannelId, ChannelKey, ChannelState, Claim, Domain
from swarm_ledger.errors import REFUSALS
from swarm_ledger.ledger import Opening
from tests.ledger.histories import DELAY_S
from tests.ledger.parties import EVERYBODY

SOURCE = Path(__file__).parents[2] / "ledger" / "contracts" / "channels.vy"
SHIPPED = Path(__file__).parents[2] / "ledger" / "swarm_ledger" / "evm" / "contract.json"
_REVERTED = "08c379a0"  # the selector of Error(string)
_DEPLOYER = Account(bytes([0x66]) * 32).address
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


class ContractOnRevm:
    """A deployment of its own, in the chain's coin, with rich accounts."""

    def __init__(self, bytecode: str) -> None:
        self._evm = pyrevm.EVM(pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=0)), spec_id="CANCUN")
        for account in (*EVERYBODY, _DEPLOYER):
            self._evm.set_balance(text(account), 2**120)
        code = bytes.fromhex(bytecode.removeprefix("0x")) + encode(["address", "uint256"], [text(NOBODY), DELAY_S])
        self._address = self._evm.deploy(text(_DEPLOYER), code)
        self.domain = Domain(0, Address(bytes.fromhex(self._address[2:])))

    @property
    def separator(self) -> bytes:
        """The domain that the contract itself computes."""
        return self._call(_DEPLOYER, "domain_separator", [])

    @property
    def held(self) -> int:
        """The coins of the contract."""
        return self._evm.get_balance(self._address)

    def balance(self, account: Address) -> int:
        return int.from_bytes(self._call(_DEPLOYER, "balance_of", [text(account)]), "big")

    def channel(self, channel: ChannelId) -> ChannelState | None:
        found = self._call(_DEPLOYER, "channel_states", [[channel]])
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
        return int.from_bytes(self._at(now_s)._call(_DEPLOYER, "redeem", [rows]), "big")

    def request_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        self._at(now_s)._call(_as_payer(caller, key), "request_close", [text(key.payee), text(key.signer), key.salt])

    def finish_close(self, caller: Address, key: ChannelKey, now_s: float) -> None:
        parties = [text(key.payer), text(key.payee), text(key.signer), key.salt]
        self._at(now_s)._call(caller, "finish_close", parties)

    def withdraw(self, caller: Address, amount: int, to: Address, now_s: float) -> None:
        self._at(now_s)._call(caller, "withdraw", [amount, text(to)])

    def _at(self, now_s: float) -> "ContractOnRevm":
        self._evm.set_block_env(pyrevm.BlockEnv(timestamp=int(now_s)))
        return self

    def _call(self, caller: Address, method: str, values: list[Any], value: int = 0) -> bytes:
        types = _TYPES[method]
        selector = keccak(f"{method}({','.join(types)})".encode())[:4]
        try:
            return self._evm.message_call(text(caller), self._address, selector + encode(types, values), value)
        except RuntimeError as error:
            raise REFUSALS[reason_of(str(error))] from error


def reason_of(message: str) -> str:
    """Return the reason of a revert out of what pyrevm says of it."""
    assert _REVERTED in message, f"a revert without a reason: {message}"
    digits = message[message.index(_REVERTED) + len(_REVERTED) :]
    length = int(digits[64:128], 16)
    return bytes.fromhex(digits[128 : 128 + 2 * length]).decode()


def _as_payer(caller: Address, key: ChannelKey) -> Address:
    """The contract takes its caller for the payer: to others, it is as if there were no such channel."""
    return caller if caller == key.payer else _DEPLOYER


def text(address: bytes) -> str:
    return f"0x{address.hex()}"
