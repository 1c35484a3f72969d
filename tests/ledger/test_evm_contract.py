"""The contract that is shipped, and the bytes that are exchanged with it."""

import json

import eth_abi
import pytest
from hypothesis import given
from hypothesis import strategies as st
from web3 import Web3

from swarm_ledger.accounts import Address
from swarm_ledger.channels import ChannelState, Domain
from swarm_ledger.errors import REFUSALS, BadAmount, ContractReverted
from swarm_ledger.evm import contract
from swarm_ledger.evm.confirmations import as_it_counts, confirmed_block
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import PAYER, claim, compiler, endpoints, new_world


def test_what_is_shipped_is_what_the_compiler_makes() -> None:
    compile_contracts = compiler()
    made = compile_contracts.as_text(compile_contracts.compile_contract(compile_contracts.SOURCE))
    assert made == compile_contracts.SHIPPED.read_text(), "run: python ledger/contracts/compile.py"


def test_every_reason_in_the_source_is_a_code_of_ours() -> None:
    source = compiler().SOURCE.read_text()
    reasons = {line.split('"')[-2] for line in source.splitlines() if line.strip().startswith("assert") and '"' in line}
    assert reasons == {*REFUSALS, "value", "token"}


def test_calls_are_encoded_as_web3_does_it() -> None:
    text = json.loads(compiler().SHIPPED.read_text())
    theirs = Web3().eth.contract(abi=text["abi"])
    a, b = "0x" + "11" * 20, "0x" + "22" * 20
    ours = contract.shipped().abi
    openings = [(Web3.to_checksum_address(a), Web3.to_checksum_address(b), 7, 8)]
    assert "0x" + ours.call("deposit_open", 5, openings).hex() == theirs.encode_abi("deposit_open", [5, openings])
    assert ours.topic("Opened") == Web3.keccak(text="Opened(address,bytes32,address,address,uint256,uint256)")


def test_the_domain_is_the_one_that_vouchers_are_signed_for() -> None:
    async def main() -> None:
        world = await new_world()
        ledger = await world.ledger(PAYER)
        data = contract.shipped().abi.call("domain_separator")
        found = await endpoints(world.chain).ask(
            lambda eth: eth.call({"to": Web3.to_checksum_address(world.contract), "data": data})  # type: ignore[typeddict-item]
        )
        assert bytes(found) == ledger.domain.separator
        assert ledger.domain == Domain(ledger.domain.chain_id, world.contract)
        with pytest.raises(BadAmount):
            await ledger.redeem([type(good := claim(ledger, 1, 1))(good.key, 2**128, good.signature)])

    run(main())


@pytest.mark.parametrize("code", REFUSALS)
def test_a_reason_stands_for_its_error(code: str) -> None:
    reason = contract.revert_reason(f"execution reverted: {code}", None)
    assert reason == code
    assert type(contract.refusal(code)) is REFUSALS[code]


def test_another_reason_is_told_as_it_is() -> None:
    error = contract.refusal("token", "0x12")
    assert isinstance(error, ContractReverted)
    assert "token" in str(error)
    assert contract.revert_reason("limit exceeded", None) is None
    assert contract.revert_reason("execution reverted", "0x08c379a0ffff") == ""


@given(st.text(max_size=80), st.one_of(st.none(), st.text(max_size=80), st.dictionaries(st.text(), st.text())))
def test_no_endpoint_can_break_the_reading_of_reasons(message: str, data: object) -> None:
    contract.revert_reason(message, data)


STATES = st.one_of(
    st.none(),
    st.builds(ChannelState, st.integers(1, 9), st.integers(0, 9), st.integers(0, 9), st.booleans()),
)


@given(STATES, STATES)
def test_only_what_is_bad_for_a_payee_counts_at_once(
    confirmed: ChannelState | None, latest: ChannelState | None
) -> None:
    counts = as_it_counts(confirmed, latest)
    if confirmed is None or latest is None:
        assert counts is None
        return
    assert counts is not None
    for state in (confirmed, latest):
        assert counts.allocated <= state.allocated
        assert counts.claimed >= state.claimed
        assert counts.is_closed >= state.is_closed
    assert counts.closes_at_s == latest.closes_at_s
    assert as_it_counts(confirmed, confirmed) == confirmed


def test_a_block_is_its_own_first_confirmation() -> None:
    assert confirmed_block(10, 1) == 10
    assert confirmed_block(10, 3) == 8


def test_addresses_of_events_are_bytes() -> None:
    who = Address(b"\x11" * 20)
    topics = [contract.shipped().abi.topic("Withdrawn"), bytes(12) + who]
    data = eth_abi.encode(["address", "uint256"], [b"\x22" * 20, 5])
    log = {
        "address": "0x" + "44" * 20,
        "topics": topics,
        "data": data,
        "blockNumber": 3,
        "logIndex": 1,
        "transactionHash": b"\x33" * 32,
    }
    line = contract.read_line(log)
    assert line is not None
    assert (line.kind, line.account, line.other, line.amount) == ("withdrawn", who, b"\x22" * 20, 5)
    assert contract.read_line({**log, "topics": [b"x" * 32]}) is None
    assert contract.read_line({**log, "topics": []}) is None
