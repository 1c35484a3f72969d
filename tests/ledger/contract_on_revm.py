"""The contract on pyrevm: quick, and on chain 0, so that one signature is good for it and a bank with its address."""

from typing import Self

import pyrevm

from swarm_ledger.accounts import Address
from swarm_ledger.channels import Domain
from swarm_ledger.errors import REFUSALS
from tests.ledger.contract_driver import DEPLOYER, ContractDriver, code_for, text
from tests.ledger.parties import EVERYBODY

_REVERTED = "08c379a0"  # the selector of Error(string)


class ContractOnRevm(ContractDriver):
    """One machine, one contract."""

    def __init__(self, bytecode: str) -> None:
        self._evm = pyrevm.EVM(pyrevm.Env(cfg=pyrevm.CfgEnv(chain_id=0)), spec_id="CANCUN")
        for account in (*EVERYBODY, DEPLOYER):
            self._evm.set_balance(text(account), 2**120)
        self._address = self._evm.deploy(text(DEPLOYER), code_for(bytecode))
        self.domain = Domain(0, Address(bytes.fromhex(self._address[2:])))

    @property
    def held(self) -> int:
        return int(self._evm.get_balance(self._address))

    def _at(self, now_s: float) -> Self:
        self._evm.set_block_env(pyrevm.BlockEnv(timestamp=int(now_s)))
        return self

    def _run(self, caller: Address, data: bytes, value: int, *, reads: bool) -> bytes:
        try:
            return bytes(self._evm.message_call(text(caller), self._address, data, value))
        except RuntimeError as error:
            raise REFUSALS[reason_of(str(error))] from error


def reason_of(message: str) -> str:
    """Return the reason of a revert out of what pyrevm says of it."""
    assert _REVERTED in message, f"a revert without a reason: {message}"
    digits = message[message.index(_REVERTED) + len(_REVERTED) :]
    length = int(digits[64:128], 16)
    return bytes.fromhex(digits[128 : 128 + 2 * length]).decode()
