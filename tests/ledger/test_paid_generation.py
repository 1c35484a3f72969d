"""Generations that are paid for: what the client pays and what each node earns, to the smallest unit."""

import asyncio
from itertools import islice
from pathlib import Path

import pytest

from swarm_ledger.errors import InsufficientFunds, OverBudget
from swarm_ledger.metering import Meter, Place
from swarm_ledger.quotes import decode_quote
from swarm_sim.digest_model import continuation
from swarm_sim.virtual_loop import run
from tests.ledger.paid_swarm import BLOCKS, paid_swarm

SPANS = ((0, 4), (4, 8), (8, 12))
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def expected(prompt: list[int], tokens: int) -> list[int]:
    return list(islice(continuation(prompt, BLOCKS, None), tokens))


def test_nodes_earn_what_the_client_pays(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS) as swarm:
            async with swarm.client() as model:
                generation = await model.generate(PROMPT, max_new_tokens=30, temperature=0)
                assert generation.token_ids == expected(PROMPT, 30)
                await asyncio.sleep(1)
            paid = {hop.peer: hop.paid for hop in generation.receipt.hops}
            assert {node.peer: node.cashier.summary()["paid"] for node in swarm.nodes} == paid
            assert all(amount > 0 for amount in paid.values())
            for place, (node, hop) in enumerate(zip(swarm.nodes, generation.receipt.hops, strict=True)):
                # Counted by hand: 8 tokens of prefill, 29 steps, a token drawn behind 30 of them, one lease.
                quote = decode_quote(node.cashier.quote()[0])
                shape = Place(blocks=4, is_first=place == 0, is_last=place == 2, pages=3)
                meter = Meter(quote, shape)
                meter.lease(60)
                meter.step("prefill", 0, 8, 1)
                for step in range(29):
                    meter.step("decode", 8 + step, 1, 1)
                assert hop.paid == meter.amount
                assert node.cashier.summary()["earned"] == meter.amount
            for node in swarm.nodes:
                await node.cashier.redeem()
            free = [await node.ledger.balance() for node in swarm.nodes]
            assert free == [paid[node.peer] for node in swarm.nodes]
            assert swarm.bank.totals().free + swarm.bank.totals().in_channels == swarm.bank.totals().minted

    run(play())


def test_a_long_prompt_is_paid_piece_by_piece(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS, window_ns=400_000) as swarm, swarm.client() as model:
            prompt = [number % 50 for number in range(2000)]
            generation = await model.generate(prompt, max_new_tokens=40, temperature=0)
            assert generation.token_ids == expected(prompt, 40)
            assert not generation.retries
            await asyncio.sleep(1)
            for node, hop in zip(swarm.nodes, generation.receipt.hops, strict=True):
                assert node.cashier.summary()["paid"] == node.cashier.summary()["earned"] == hop.paid

    run(play())


@pytest.mark.parametrize("sessions", [1, 8])
def test_sessions_share_a_channel(tmp_path: Path, sessions: int) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS, window_ns=4_000_000) as swarm, swarm.client() as model:
            prompts = [[number, 7, 8] for number in range(sessions)]
            for _ in range(2):
                generations = await model.generate(prompts, max_new_tokens=50, temperature=0)
                assert [one.token_ids for one in generations] == [expected(prompt, 50) for prompt in prompts]
                assert not any(one.retries for one in generations)
            await asyncio.sleep(1)
            for node in swarm.nodes:
                assert len(node.earnings.channels) == 1
                summary = node.cashier.summary()
                assert summary["paid"] == summary["earned"]

    run(play())


def test_a_budget_is_kept(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS) as swarm, swarm.client() as model:
            whole = await model.generate(PROMPT, max_new_tokens=100, temperature=0)
            budget = whole.receipt.paid["credits"] / 2 / 1e9
            with pytest.raises(OverBudget):
                await model.generate(PROMPT, max_new_tokens=100, temperature=0, budget=f"{budget:.9f}")
            await asyncio.sleep(1)
            earned = sum(node.cashier.summary()["paid"] for node in swarm.nodes) - whole.receipt.paid["credits"]
            assert 0 < earned <= budget * 1e9

    run(play())


def test_without_money_nothing_is_computed(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS, min_allocation_ns=10**12, price_per_hour=10**15) as swarm:
            async with swarm.client() as model:
                with pytest.raises(InsufficientFunds):
                    await model.generate(PROMPT, max_new_tokens=10, temperature=0)
            assert all(node.node.served.sessions == 0 for node in swarm.nodes)

    run(play())
