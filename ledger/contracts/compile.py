"""Compiles `channels.vy` into what the package ships: `python ledger/contracts/compile.py`.

A test compiles it again and compares, so run this after each change of the contract.
"""

import json
from pathlib import Path
from typing import Any

import vyper

SOURCE = Path(__file__).with_name("channels.vy")
SHIPPED = Path(__file__).parents[1] / "swarm_ledger" / "evm" / "contract.json"


def compile_contract(source: Path) -> dict[str, Any]:
    """Return the compiler's version, the ABI, the code that deploys a contract and the code that it leaves behind."""
    found = vyper.compile_code(source.read_text(), output_formats=["abi", "bytecode", "bytecode_runtime"])
    return {
        "compiler": f"vyper {vyper.__version__}",
        "abi": found["abi"],
        "bytecode": found["bytecode"],
        "runtime": found["bytecode_runtime"],  # a deployed contract has its immutables behind this
    }


def as_text(contract: dict[str, Any]) -> str:
    """Return the text of `contract.json`."""
    return json.dumps(contract, indent=1) + "\n"


if __name__ == "__main__":
    SHIPPED.write_text(as_text(compile_contract(SOURCE)))
    print(f"{SHIPPED} written")
