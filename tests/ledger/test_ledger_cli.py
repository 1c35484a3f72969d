"""The `swarm-ledger` program against a chain over HTTP: what it prints, and what it says when it cannot."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from swarm_ledger import claims_file, keystore
from swarm_ledger.__main__ import app
from swarm_ledger.access import Access
from swarm_ledger.accounts import Account, address_text, parse_address
from swarm_ledger.channels import ChannelKey, ChannelState, Claim, Domain, Voucher, VoucherDigests
from swarm_ledger.earning import Earnings
from swarm_ledger.evm.endpoints import Endpoints
from swarm_ledger.evm.evm_ledger import EvmLedger
from swarm_ledger.evm.opening import open_evm
from swarm_ledger.evm.sending import Sending
from swarm_ledger.keystore import PASSWORD_VARIABLE
from swarm_ledger.ledger import Ledger, Opening
from swarm_ledger.node_store import NodeStore
from swarm_sim.local_chain import LocalChain, served
from tests.ledger.evm_world import DELAY_S, PAYEE, PAYER, SIGNER

PASSWORD = "a secret that nobody may see"
COIN = 10**18


@dataclass
class Shell:
    """What a person has set in their shell."""

    chain: LocalChain
    directory: Path
    url: str
    contract: str = ""

    def key(self, account: Account) -> str:
        file = self.directory / address_text(account.address)
        if not file.exists():
            keystore.create(file, account, PASSWORD, work_factor=2)
        return str(file)

    def run(self, *arguments: str, account: Account = PAYER, stdin: str | None = None) -> Result:
        options = ["--ledger", "evm", "--rpc", self.url, "--confirmations", "1", "--keystore", self.key(account)]
        if self.contract:
            options += ["--contract", self.contract]
        result = CliRunner().invoke(app, [*arguments, *options], input=stdin)
        assert PASSWORD not in result.output
        return result

    def json(self, *arguments: str, account: Account = PAYER, code: int = 0, stdin: str | None = None) -> Any:
        result = self.run(*arguments, "--json", account=account, stdin=stdin)
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    @property
    def domain(self) -> Domain:
        chain_id = int(self.chain.answer({"method": "eth_chainId"})["result"], 16)
        return Domain(chain_id, parse_address(self.contract))

    def vouchers(self, salt: int, cumulative: int) -> str:
        key, digests = ChannelKey(PAYER.address, PAYEE.address, SIGNER.address, salt), VoucherDigests(self.domain)
        return claims_file.write([Claim(key, cumulative, digests.sign(key.id, cumulative, SIGNER).signature)])


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    monkeypatch.setenv(PASSWORD_VARIABLE, PASSWORD)
    for name in ("SWARM_LEDGER", "SWARM_LEDGER_RPC", "SWARM_LEDGER_CONTRACT", "SWARM_LEDGER_KEYSTORE"):
        monkeypatch.delenv(name, raising=False)
    chain = LocalChain()
    with served(chain) as url:
        yield Shell(chain, tmp_path, url)


@pytest.fixture
def ledger(shell: Shell) -> Shell:
    """A shell whose ledger was deployed with it."""
    shell.contract = shell.json("deploy", "--close-delay", str(DELAY_S))["contract"]
    return shell


def test_a_ledger_from_its_deployment_to_the_withdrawal(ledger: Shell, tmp_path: Path) -> None:
    assert ledger.json("deposit", "0.5")["credited"] == str(COIN // 2)
    found = ledger.json("balance")
    assert (found["account"], found["contract"]) == (address_text(PAYER.address), ledger.contract)
    assert (found["free"], found["in_channels"], found["held_for_account"]) == (str(COIN // 2), "0", "0")
    assert int(found["wallet_wei"]) > 0
    open_channel(ledger, 1, COIN // 4)

    [channel] = ledger.json("channels")["channels"]
    assert (channel["role"], channel["allocated"], channel["closes_at_s"]) == ("payer", str(COIN // 4), None)
    [seen] = ledger.json("channels", account=PAYEE)["channels"]
    assert seen == {**channel, "role": "payee"}

    file = tmp_path / "vouchers.json"
    file.write_text(ledger.vouchers(1, COIN // 8))
    assert ledger.json("redeem", str(file), account=PAYEE)["paid"] == str(COIN // 8)
    assert ledger.json("redeem", "-", account=PAYEE, stdin=file.read_text(), code=1)["error"] == "nothing_to_claim"

    closing = ledger.json("close", channel["channel"][:10])
    assert not closing["closed"]
    assert closing["closes_at_s"] > 0
    refused = ledger.json("close", channel["channel"], account=PAYEE, code=1)
    assert (refused["error"], "redeem" in refused["message"]) == ("bad_option", True)
    assert ledger.json("close", channel["channel"], "--refund", account=PAYEE)["closed"]
    assert ledger.json("channels")["channels"] == []

    found = ledger.json("withdraw", "all", "--to", address_text(SIGNER.address), account=PAYEE)
    assert (found["withdrawn"], found["to"]) == (str(COIN // 8), address_text(SIGNER.address))
    events = ledger.json("history", account=PAYEE)["events"]
    assert [event["kind"] for event in events] == ["withdrawn", "closed", "closing", "claimed"]
    assert all(event["transaction"].startswith("0x") for event in events)
    assert len(ledger.json("history", "--limit", "2")["events"]) == 2


def test_people_get_tables_and_sentences(ledger: Shell) -> None:
    assert "0.5 ETH credited" in ledger.run("deposit", "0.5").stdout
    open_channel(ledger, 1, COIN // 4)
    shown = ledger.run("balance").stdout
    for text in (address_text(PAYER.address), "0.25 ETH"):
        assert text in shown
    shown = ledger.run("channels").stdout
    assert address_text(PAYEE.address) in shown
    assert "0.25 ETH" in shown
    assert "opened" in ledger.run("history").stdout
    result = ledger.run("withdraw", "9")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "the free balance is too small" in result.stderr
    assert "deposit more" in result.stderr


def test_a_close_is_finished_after_its_delay(ledger: Shell) -> None:
    ledger.json("deposit", "1")
    open_channel(ledger, 1, COIN // 4)
    [channel] = ledger.json("channels")["channels"]
    for _ in range(2):
        assert not ledger.json("close", channel["channel"])["closed"]
    ledger.chain.wait(DELAY_S)
    assert ledger.json("close", channel["channel"])["closed"]
    assert ledger.json("balance")["free"] == str(COIN)


def test_a_key_file_is_made_and_shown(shell: Shell, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("other\n")
    file = tmp_path / "new.json"
    options = ["--ledger", "evm", "--keystore", str(file), "--password-file", str(password), "--json"]
    made = json.loads(CliRunner().invoke(app, ["account", "--new", *options]).stdout)
    assert json.loads(CliRunner().invoke(app, ["account", *options]).stdout) == made
    assert keystore.load(file, "other").address == parse_address(made["account"])
    again = CliRunner().invoke(app, ["account", "--new", *options])
    assert (again.exit_code, json.loads(again.stdout)["error"]) == (1, "bad_key_file")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["deposit", "pony"], "bad_option", "not an amount"),
        (["deposit", "0.0000000000000000001"], "bad_option", "at most 18 decimals"),
        (["deposit", "0"], "bad_amount", "nothing"),
        (["withdraw", "1"], "insufficient_funds", "too small"),
        (["withdraw", "1", "--to", "0x12"], "bad_option", "--to"),
        (["close", "0x1234"], "no_channel", "no such channel"),
        (["redeem", "/nowhere"], "bad_option", "cannot be read"),
        (["redeem"], "bad_option", "or --store"),
        (["redeem", "--store", "/nowhere"], "bad_option", "is no file"),
        (["balance", "--chain-id", "5"], "wrong_chain", "instead of 5"),
        (["balance", "--contract", "0x" + "11" * 20], "no_such_ledger", "no contract"),
        (["balance", "--contract", "pony"], "bad_option", "--contract"),
        (["balance", "--confirmations", "0"], "bad_option", "--confirmations"),
        (["balance", "--ledger", "embedded"], "bad_option", "no way to the embedded ledger"),
        (["deploy", "--ledger", "embedded"], "bad_option", "--ledger evm"),
        (["deploy", "--close-delay", "-1"], "bad_option", "--close-delay"),
        (["deposit", "1", "--max-gas-price", "0.0000001"], "gas_too_expensive", "limit"),
    ],
)
def test_what_is_wrong_is_said_with_what_to_do(ledger: Shell, arguments: list[str], error: str, says: str) -> None:
    options = ["--json"] if "--contract" in arguments else ["--json", "--contract", ledger.contract]
    base = ["--ledger", "evm", "--rpc", ledger.url, "--keystore", ledger.key(PAYER)]
    result = CliRunner().invoke(app, [arguments[0], *base, "--confirmations", "1", *arguments[1:], *options])
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["error"] == error
    assert says in found["message"] + found["remedy"]
    assert found["remedy"]


def test_a_node_that_does_not_run_any_more_has_its_store_redeemed(ledger: Shell, tmp_path: Path) -> None:
    ledger.json("deposit", "1")
    open_channel(ledger, 1, COIN)
    file = tmp_path / "vouchers.sqlite"
    [claim] = claims_file.read(ledger.vouchers(1, COIN // 4))
    domain = ledger.domain
    store = NodeStore(file, domain, PAYEE.address)
    earnings = Earnings(VoucherDigests(domain), PAYEE.address)
    voucher = Voucher(claim.key.id, claim.cumulative, claim.signature)
    earnings.unsaved[claim.key.id] = earnings.restore(claim.key, voucher, ChannelState(COIN, 0))
    store.save(earnings, most_at_risk=0)
    in_use = ledger.json("redeem", "--store", str(file), account=PAYEE, code=1)
    assert in_use["error"] == "store_in_use"
    store.close()
    found = ledger.json("redeem", "--store", str(file), account=PAYEE)
    assert (found["vouchers"], found["paid"]) == (1, str(COIN // 4))
    store = NodeStore(file, domain, PAYEE.address)
    assert store.totals().redeemed == COIN // 4
    assert [redemption.amount for redemption in store.redemptions()] == [COIN // 4]
    store.close()
    assert ledger.json("redeem", "--store", str(file), account=PAYEE, code=1)["error"] == "nothing_to_claim"
    assert ledger.json("redeem", "--store", str(file), code=1)["error"] == "broken_store"  # another account's


@pytest.mark.parametrize("text", ["pony", "{}", "[1]", "[{}]", '[{"payer": "0x12"}]'])
def test_vouchers_that_are_none(ledger: Shell, text: str) -> None:
    assert ledger.json("redeem", "-", stdin=text, code=1)["error"] == "bad_option"


def test_a_voucher_that_is_not_signed_by_its_channels_key_is_not_sent(ledger: Shell) -> None:
    rows = json.loads(ledger.vouchers(1, 5))
    rows[0]["cumulative"] = "6"
    assert ledger.json("redeem", "-", stdin=json.dumps(rows), code=1)["error"] == "bad_signature"


def test_an_account_without_coins_is_told_where_to_send_some(ledger: Shell) -> None:
    found = ledger.json("deploy", account=Account(b"p" * 32), code=1)
    assert found["error"] == "no_gas_money"
    assert address_text(Account(b"p" * 32).address) in found["remedy"]


def test_an_endpoint_that_is_not_there(shell: Shell) -> None:
    shell.url, shell.contract = "http://127.0.0.1:9", "0x" + "11" * 20
    found = shell.json("balance", code=1)
    assert found["error"] == "ledger_unreachable"
    assert "127.0.0.1:9" in found["message"]


def test_missing_options(shell: Shell) -> None:
    for options, missing in (
        (["--rpc", shell.url], "--contract"),
        (["--contract", "0x" + "11" * 20], "--rpc"),
        (["--contract", "0x" + "11" * 20, "--rpc", shell.url], "--keystore"),
    ):
        result = CliRunner().invoke(app, ["balance", "--ledger", "evm", *options, "--json"])
        assert (result.exit_code, json.loads(result.stdout)["message"].split(":")[0]) == (1, missing)


def test_options_come_from_the_environment_too(ledger: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SWARM_LEDGER", "evm")
    monkeypatch.setenv("SWARM_LEDGER_RPC", f"http://127.0.0.1:9, {ledger.url},")
    monkeypatch.setenv("SWARM_LEDGER_CONTRACT", ledger.contract)
    monkeypatch.setenv("SWARM_LEDGER_KEYSTORE", ledger.key(PAYER))
    result = CliRunner().invoke(app, ["balance", "--json"])
    assert json.loads(result.stdout)["free"] == "0"


def test_a_program_with_links_brings_the_way_to_an_embedded_ledger(ledger: Shell) -> None:
    asked: list[Access] = []

    def opener(access: Access) -> AbstractAsyncContextManager[Ledger]:
        asked.append(access)
        return open_evm(replace(access, contract=ledger.contract))

    options = ["--rpc", ledger.url, "--keystore", ledger.key(PAYER), "--json"]
    result = CliRunner().invoke(app, ["balance", *options], obj={"embedded": opener})
    assert json.loads(result.stdout)["account"] == address_text(PAYER.address)
    assert [access.ledger for access in asked] == ["embedded"]


def test_what_is_not_installed_is_said() -> None:
    code = "import sys; sys.modules['web3'] = None; from swarm_ledger.__main__ import main; main()"
    options = ["balance", "--ledger", "evm", "--rpc", "http://127.0.0.1:9", "--contract", "0x" + "11" * 20, "--json"]
    ended = subprocess.run([sys.executable, "-c", code, *options], capture_output=True, text=True, check=False)
    found = json.loads(ended.stdout)
    assert (ended.returncode, found["error"]) == (1, "missing_package")
    assert "swarm-inference[evm]" in found["remedy"]


def test_web3_is_not_imported_before_a_chain_is_used() -> None:
    code = "import sys, swarm_ledger.commands, swarm_ledger.collector; print([m for m in sys.modules if 'web3' in m])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_help_is_there_for_every_command() -> None:
    for command in ("deploy", "account", "balance", "deposit", "channels", "redeem", "close", "withdraw", "history"):
        result = CliRunner().invoke(app, [command, "--help"])
        assert result.exit_code == 0
        assert "--ledger" in result.stdout


def open_channel(shell: Shell, salt: int, amount: int) -> None:
    """Open a channel as a client does; the program has no command for it."""

    async def main() -> None:
        endpoints = Endpoints.of_urls([shell.url])
        sending = Sending(confirmations=1, poll_s=0.01)
        async with await EvmLedger.connect(endpoints, parse_address(shell.contract), PAYER, sending) as ledger:
            await ledger.open([Opening(PAYEE.address, SIGNER.address, salt, amount)])

    asyncio.run(main())
