"""The contract on eth-tester: a whole chain with blocks, gas and accounts, and on every machine.

Each transaction is a block, so the time of the next one is always later than that of the last.
"""

from typing import Self

from eth_tester import EthereumTester, PyEVMBackend
from eth_tester.exceptions import TransactionFailed

from swarm_ledger.accounts import Address, address_text
from swarm_ledger.channels import Domain
from swarm_ledger.errors import REFUSALS
from tests.ledger.contract_driver import DEPLOYER_ACCOUNT, ContractDriver, code_for
from tests.ledger.parties import EVERYBODY_ACCOUNTS

CHAIN_ID = 131277322940537  # eth-tester's own
GAS = 3_000_000
START_S = 2_600_000_000  # later than any clock says: a chain in the past makes its next block now


class ContractOnTester(ContractDriver):
    """One chain, one contract."""

    def __init__(self, bytecode: str) -> None:
        rich = {"balance": 2**120, "nonce": 0, "code": b"", "storage": {}}
        accounts = (*EVERYBODY_ACCOUNTS, DEPLOYER_ACCOUNT)
        backend = PyEVMBackend(
            PyEVMBackend.generate_genesis_params({"timestamp": START_S - 1000}),
            {bytes(account.address): rich for account in accounts},
        )
        self._tester = EthereumTester(backend)
        for account in accounts:
            self._tester.add_account(f"0x{account.secret.hex()}")
        sent = self._tester.send_transaction(
            {"from": address_text(DEPLOYER_ACCOUNT.address), "data": f"0x{code_for(bytecode).hex()}", "gas": GAS}
        )
        self._address = self._tester.get_transaction_receipt(sent)["contract_address"]
        self.domain = Domain(CHAIN_ID, Address(bytes.fromhex(self._address[2:])))

    @property
    def held(self) -> int:
        return int(self._tester.get_balance(self._address))

    def _at(self, now_s: float) -> Self:
        self._tester.time_travel(int(now_s))
        return self

    def _run(self, caller: Address, data: bytes, value: int, *, reads: bool) -> bytes:
        call = {
            "from": address_text(caller),
            "to": self._address,
            "data": f"0x{data.hex()}",
            "value": value,
            "gas": GAS,
        }
        try:
            returned = self._tester.call(call, "pending")
        except TransactionFailed as error:
            raise REFUSALS[str(error.args[0]).removeprefix("execution reverted: ")] from error
        if not reads:
            self._tester.send_transaction(call)
        return bytes.fromhex(returned[2:])
