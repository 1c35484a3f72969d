"""Endpoints that fail, hang, talk nonsense or serve another chain."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import eth_abi
import pytest
from web3.providers.async_base import AsyncJSONBaseProvider
from web3.types import RPCEndpoint, RPCResponse

from swarm_ledger.errors import ContractReverted, InsufficientFunds, LedgerUnreachable, WrongChain
from swarm_ledger.evm import questions
from swarm_ledger.evm.endpoints import Endpoint, Endpoints
from swarm_ledger.evm.sending import Sender
from swarm_sim.local_chain import LocalChain, LocalProvider, served
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import PAYER, SENDING, new_world

CHAIN_ID = 7

Answer = Callable[[str, Any], Any]


class ScriptedProvider(AsyncJSONBaseProvider):
    """Answers as a function says: a result, an exception that is raised, or a dictionary that is the response."""

    def __init__(self, answer: Answer) -> None:
        super().__init__()
        self.answer = answer
        self.asked: list[str] = []

    async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
        self.asked.append(method)
        found = self.answer(method, params)
        if isinstance(found, Exception):
            raise found
        if found is HANGS:
            await asyncio.sleep(10**6)
        if isinstance(found, dict):
            return found  # type: ignore[return-value]
        return {"jsonrpc": "2.0", "id": 1, "result": found}


HANGS = object()


def good(method: str, _: Any) -> Any:
    return {"eth_chainId": hex(CHAIN_ID), "eth_blockNumber": "0x10"}[method]


def bad(found: Any) -> Answer:
    return lambda method, params: found


def late(found: Any) -> Answer:
    """Answers which chain it is, and nothing else."""
    return lambda method, params: hex(CHAIN_ID) if method == "eth_chainId" else found


def both(*answers: Answer, chain_id: int | None = CHAIN_ID) -> tuple[Endpoints, list[ScriptedProvider]]:
    providers = [ScriptedProvider(answer) for answer in answers]
    each = [Endpoint(f"endpoint{number}", provider) for number, provider in enumerate(providers)]
    return Endpoints(each, chain_id=chain_id), providers


def revert(text: str = "funds") -> str:
    """Return what the contract gives back, as the ABI writes it."""
    return "0x08c379a0" + eth_abi.encode(["string"], [text]).hex()


FAILURES: list[tuple[Any, str]] = [
    (OSError("gone"), "cannot be read"),
    (HANGS, "no answer within 10 s"),
    ("pony", "cannot be read"),
    ({}, "cannot be read"),
    ({"jsonrpc": "2.0", "id": 1, "error": {"code": -32005, "message": "limit exceeded"}}, "it says: limit exceeded"),
    ({"jsonrpc": "2.0", "id": 1, "error": "no"}, "endpoint0: "),
    ([], "cannot be read"),
]


@pytest.mark.parametrize("wrap", [bad, late], ids=["at once", "later"])
@pytest.mark.parametrize(("found", "reason"), FAILURES)
def test_the_next_endpoint_is_asked_where_one_fails(wrap: Callable[[Any], Answer], found: Any, reason: str) -> None:
    async def main() -> None:
        endpoints, providers = both(wrap(found), good)
        assert await endpoints.ask(questions.head) == 16
        asked = len(providers[0].asked)
        assert await endpoints.ask(questions.head) == 16
        assert len(providers[0].asked) == asked  # the one that answered goes first now

    run(main())


@pytest.mark.parametrize(("found", "reason"), FAILURES)
def test_where_all_fail_each_ones_reason_is_told(found: Any, reason: str) -> None:
    async def main() -> None:
        endpoints, _ = both(late(found), bad(OSError()))
        with pytest.raises(LedgerUnreachable, match=r"endpoint0.*endpoint1") as raised:
            await endpoints.ask(questions.head)
        assert reason in raised.value.reason
        assert "endpoint1: " in raised.value.reason

    run(main())


def test_a_single_endpoint_is_asked_again_after_a_moment() -> None:
    async def main() -> None:
        answers = iter([OSError(), hex(CHAIN_ID), "0x10", "pony", hex(CHAIN_ID), "0x11"])
        endpoints, _ = both(lambda method, params: next(answers))
        assert await endpoints.ask(questions.head) == 16
        assert await endpoints.ask(questions.head) == 17

    run(main())


def test_an_endpoint_of_another_chain_is_not_used() -> None:
    async def main() -> None:
        def other(method: str, _: Any) -> Any:
            return "0x8" if method == "eth_chainId" else "0x99"

        endpoints, providers = both(other, good)
        assert await endpoints.ask(questions.head) == 16
        assert providers[0].asked == ["eth_chainId"]
        endpoints, _ = both(other, other)
        with pytest.raises(WrongChain) as raised:
            await endpoints.ask(questions.head)
        assert (raised.value.served, raised.value.expected) == (8, 7)
        endpoints, _ = both(good, other, chain_id=None)
        assert await endpoints.chain_id() == 7

    run(main())


def test_an_endpoint_that_changes_its_chain_after_a_failure_is_not_used() -> None:
    async def main() -> None:
        state = {"chain": "0x7", "works": True}

        def fickle(method: str, _: Any) -> Any:
            if not state["works"]:
                return OSError()
            return state["chain"] if method == "eth_chainId" else "0x99"

        endpoints, _ = both(fickle)
        assert await endpoints.ask(questions.head) == 0x99
        state["works"] = False
        with pytest.raises(LedgerUnreachable):
            await endpoints.ask(questions.head)
        state.update(chain="0x8", works=True)
        with pytest.raises(WrongChain):
            await endpoints.ask(questions.head)

    run(main())


@pytest.mark.parametrize(
    "error",
    [
        {"code": 3, "message": "execution reverted: funds"},
        {"code": 3, "message": "execution reverted", "data": revert()},
        {"code": -32015, "message": "VM execution error.", "data": f"Reverted {revert()}"},
        {"code": -32000, "message": "Execution reverted (funds)", "data": revert()},
        {"code": -32000, "message": "execution reverted", "data": {"data": revert()}},
    ],
)
def test_a_revert_is_an_answer_whichever_software_the_node_runs(error: dict[str, Any]) -> None:
    async def main() -> None:
        endpoints, providers = both(late({"jsonrpc": "2.0", "id": 1, "error": error}), good)
        with pytest.raises(InsufficientFunds):
            await endpoints.ask(questions.gas(PAYER.address, questions.Call(None, b"x")))
        assert providers[1].asked == []

    run(main())


def test_a_revert_without_one_of_the_ledgers_codes() -> None:
    async def main() -> None:
        endpoints, _ = both(late({"jsonrpc": "2.0", "id": 1, "error": {"code": 3, "message": "execution reverted"}}))
        with pytest.raises(ContractReverted, match="gives no reason"):
            await endpoints.ask(questions.gas(PAYER.address, questions.Call(None, b"x")))

    run(main())


def test_an_endpoint_that_fails_in_the_middle_of_everything_changes_nothing() -> None:
    """Every seventh answer fails, so each question meets it sooner or later."""

    async def main() -> None:
        world = await new_world()
        ledger = await world.ledger(PAYER)
        count = 0

        async def flaky(method: RPCEndpoint, params: Any) -> RPCResponse:
            nonlocal count
            count += 1
            if count % 7 == 0:
                raise OSError
            return await LocalProvider(world.chain).make_request(method, params)

        class FlakyProvider(LocalProvider):
            async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
                return await flaky(method, params)

        each = [Endpoint(name, FlakyProvider(world.chain)) for name in ("one", "two", "three")]
        shaky = await type(ledger).connect(Endpoints(each), world.contract, PAYER, SENDING)
        for _ in range(5):
            await shaky.deposit(100)
        assert await ledger.balance() == 500
        assert count > 30

    run(main())


def test_an_endpoint_that_names_a_nonce_far_away_is_not_believed() -> None:
    async def main() -> None:
        class FarProvider(LocalProvider):
            async def make_request(self, method: RPCEndpoint, params: Any) -> RPCResponse:
                if method == "eth_getTransactionCount" and params[1] == "pending":
                    return {"jsonrpc": "2.0", "id": 1, "result": "0xffffff"}
                return await super().make_request(method, params)

        chain = LocalChain()
        endpoints = Endpoints([Endpoint("far", FarProvider(chain))])
        sender = Sender(endpoints, PAYER, await endpoints.chain_id(), SENDING)
        with pytest.raises(LedgerUnreachable, match="far: "):
            await sender.send(questions.Call(PAYER.address))
        assert chain.requests["eth_sendRawTransaction"] == 0

    run(main())


def test_no_url_is_ever_shown_because_it_may_hold_a_key() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    async def main() -> str:
        endpoints = Endpoints.of_urls([f"http://user:pass@127.0.0.1:{port}/v3/secret?key=secret"])
        try:
            with pytest.raises(LedgerUnreachable) as raised:
                await endpoints.chain_id()
        finally:
            await endpoints.close()
        return str(raised.value)

    said = asyncio.run(main())
    assert f"127.0.0.1:{port}: no connection" in said
    for secret in ("secret", "pass", "user"):
        assert secret not in said


@pytest.mark.parametrize(
    "url", ["", "pony", "ftp://somewhere", "https://", "http://host:port", "http://[1", "https://h:99999"]
)
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(LedgerUnreachable, match="not a URL"):
        Endpoints.of_urls([url])


def test_over_http() -> None:
    async def main(url: str) -> None:
        endpoints = Endpoints.of_urls([url])
        try:
            assert await endpoints.chain_id() > 0
            assert await endpoints.ask(questions.head) == 0
        finally:
            await endpoints.close()

    with served(LocalChain()) as url:
        asyncio.run(main(url))
