"""Whoever cheats on the stream gains at most the window: nodes, neighbours and clients, in virtual time."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from itertools import islice
from pathlib import Path

import msgspec
import pytest

from swarm_client.payment import LEASE_S, SessionPayment
from swarm_client.wallet import Wallet
from swarm_ledger.accounts import Account
from swarm_ledger.client_store import ClientStore
from swarm_ledger.metering import Work
from swarm_ledger.node_store import NodeStore
from swarm_net.links import Body, Link
from swarm_net.memory import MemoryNetwork
from swarm_net.messages import Credit, Step
from swarm_net.session_errors import PaymentRefused
from swarm_node.cashier import Cashier, Paid
from swarm_node.executor import Piece, SpanFacts
from swarm_node.node import Node
from swarm_node.sessions import Session
from swarm_sim.digest_executor import DigestExecutor, Speed
from swarm_sim.digest_model import continuation
from swarm_sim.virtual_loop import run
from tests.ledger.paid_swarm import BLOCKS, RATES, PaidNode, PaidSwarm, paid_swarm

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
WINDOW_NS = 3_000_000  # rated time of about 37 steps of four blocks
SPANS = ((0, 4), (4, 8), (8, 12))


def expected(tokens: int, prompt: list[int] = PROMPT) -> list[int]:
    return list(islice(continuation(prompt, BLOCKS, None), tokens))


def window(swarm: PaidSwarm) -> int:
    return WINDOW_NS * swarm.price_per_hour // (3600 * 10**9)


def paid(node: PaidNode) -> int:
    return node.cashier.summary()["paid"]


class Greedy(Cashier):
    """Counts every step twice."""

    def charge(self, paid: Paid, step: Step) -> None:
        super().charge(paid, step)
        super().charge(paid, step)


def test_a_node_that_counts_too_much_is_left_and_paid_by_the_clients_count(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS[::2], window_ns=WINDOW_NS) as swarm, AsyncExitStack() as stack:
            greedy = await swarm.start(4, 8, stack, cashier_class=Greedy)
            honest = await swarm.start(4, 8, stack, decode_tokens_per_s=1.0)
            async with swarm.client() as model:
                generation = await model.generate(PROMPT, max_new_tokens=200, temperature=0)
            await asyncio.sleep(1)
            assert generation.token_ids == expected(200)
            assert generation.retries[0].error == "payment_refused"
            assert generation.route[1].peer == honest.peer
            counted = sum(hop.paid for hop in generation.receipt.hops if hop.peer == greedy.peer)
            step = 20_000 * 4 * swarm.price_per_hour // (3600 * 10**9)  # asked for and paid, never answered
            assert counted <= paid(greedy) <= counted + step
            assert greedy.cashier.summary()["earned"] > counted

    run(play())


class Stalling(DigestExecutor):
    """Computes so many batches and then none for an hour."""

    def __init__(self, facts: SpanFacts) -> None:
        super().__init__(facts, Speed())
        self._left = 60

    def duration_s(self, pieces: Sequence[Piece]) -> float:
        self._left -= 1
        return super().duration_s(pieces) if self._left > 0 else 3600.0


def test_a_node_that_stalls_is_paid_for_what_it_did(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS[::2], window_ns=WINDOW_NS) as swarm, AsyncExitStack() as stack:
            stalling = await swarm.start(4, 8, stack, executor=Stalling)
            async with swarm.client() as model:
                task = asyncio.create_task(model.generate(PROMPT, max_new_tokens=120, temperature=0))
                await asyncio.sleep(3)
                await swarm.start(4, 8, stack)
                generation = await task
            assert generation.token_ids == expected(120)
            assert generation.retries
            done = next(hop for hop in generation.receipt.hops if hop.peer == stalling.peer)
            tokens = generation.retries[0].tokens_done
            assert done.units["decode"] == 4 * (tokens - 1)
            assert paid(stalling) <= done.paid

    run(play())


class Unpaying(SessionPayment):
    """Counts, and sends nothing."""

    def send(self, kind: Work, position: int, count: int, draws: int) -> bytes:
        for hop in self._paid:
            hop.purse.send(kind, position, count, draws)
        return b""

    def credit(self, session: bytes) -> Credit | None:
        return None

    def answer(self, session: bytes, place: int, needed: int) -> Credit | None:
        return None


class Miser(Wallet):
    session_payment = Unpaying


def test_a_client_that_stops_paying_gets_the_window(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS, window_ns=WINDOW_NS) as swarm:
            account = Account.generate(swarm.rng.randbytes)
            async with swarm.client(wallet_class=Miser, account=account) as model:
                with pytest.raises(PaymentRefused):
                    await model.generate(PROMPT, max_new_tokens=500, temperature=0)
                for node in swarm.nodes:
                    assert 0 < node.cashier.summary()["earned"] <= window(swarm)
                    assert paid(node) == 0
                with pytest.raises(PaymentRefused):  # whoever owes gets no second window
                    await model.generate(PROMPT, max_new_tokens=500, temperature=0)
            for node in swarm.nodes:
                assert node.cashier.summary()["earned"] <= window(swarm)
            # Nor with another channel: it is the payer who owes.
            async with swarm.client(wallet_class=Miser, account=account) as model:
                with pytest.raises(PaymentRefused):
                    await model.generate(PROMPT, max_new_tokens=500, temperature=0)
            for node in swarm.nodes:
                assert node.cashier.summary()["earned"] <= window(swarm)

    run(play())


def test_steps_that_are_not_paid_for_wait_in_a_bounded_room(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, (*SPANS[:1], (4, 12)), window_ns=0) as swarm:
            link = None
            async with swarm.client(wallet_class=Miser) as model:
                generating = asyncio.create_task(model.generate(PROMPT, max_new_tokens=8, temperature=0))
                node = swarm.nodes[0].node
                while link is None:
                    await asyncio.sleep(0.001)
                    waiting = [session for session in node.table.sessions.values() if session.unpaid]
                    link = waiting[0].upstream if waiting else None
                (session,) = waiting
                most = node.table.most_unpaid_bytes(session)
                step = session.unpaid[0][0]
                for number in range(1, 10_000):
                    flood = msgspec.structs.replace(step, frame=step.frame + number)
                    node._on_step(link, flood, bytes(4 * step.count))
                    assert sum(len(body) for _, body in session.unpaid) <= session.unpaid_bytes <= most + 4096
                assert session.id not in node.table.sessions
                with pytest.raises(PaymentRefused):
                    await generating

    run(play())


def test_a_node_that_rates_itself_too_high_is_paid_once(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, ()) as swarm, AsyncExitStack() as stack:
            # As if a token took half a second, of which it needs a fiftieth.
            rates = msgspec.structs.replace(RATES, decode=(500_000_000 // BLOCKS,))
            boaster = await swarm.start(0, BLOCKS, stack, rates=rates, decode_tokens_per_s=1000.0)
            honest = await swarm.start(0, BLOCKS, stack, decode_tokens_per_s=50.0)
            async with swarm.client() as model:
                peers = [
                    (await model.generate(PROMPT, max_new_tokens=40, temperature=0)).route[0].peer for _ in range(3)
                ]
            assert peers == [boaster.peer, honest.peer, honest.peer]

    run(play())


class Thief(Node):
    """Passes no vouchers on."""

    def _take(self, session: Session, link: Link, message: Step, body: Body) -> None:
        super()._take(session, link, msgspec.structs.replace(message, sealed=b""), body)


def test_a_voucher_that_a_neighbour_keeps_is_brought_directly(tmp_path: Path) -> None:
    async def play() -> None:
        # So slow a network that another step waits for its voucher whenever the first one's time is over.
        network = MemoryNetwork(lambda *_: 0.4)
        async with (
            paid_swarm(tmp_path, SPANS[1:], window_ns=90_000, network=network) as swarm,
            AsyncExitStack() as stack,
        ):
            await swarm.start(0, 4, stack, node_class=Thief)
            async with swarm.client() as model:
                generation = await model.generate(PROMPT, max_new_tokens=60, temperature=0)
                await asyncio.sleep(5)
            assert generation.token_ids == expected(60)
            assert generation.timings.total_s > 2 * LEASE_S
            assert not generation.retries
            for node in swarm.nodes:
                hop = next(hop for hop in generation.receipt.hops if hop.peer == node.peer)
                assert paid(node) == hop.paid

    run(play())


def test_a_channel_that_is_being_closed_is_served_no_more_and_redeemed(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS, window_ns=WINDOW_NS) as swarm, AsyncExitStack() as stack:
            for node in swarm.nodes:
                collecting = asyncio.create_task(node.cashier.run())
                stack.callback(collecting.cancel)
            account, store = Account.generate(swarm.rng.randbytes), ClientStore(None)
            async with swarm.client(account=account, store=store) as model:
                task = asyncio.create_task(model.generate(PROMPT, max_new_tokens=2000, temperature=0))
                await asyncio.sleep(6)
                ledger = await swarm.ledger(account)
                channel = store.channels(swarm.bank.domain)[0]
                await ledger.request_close(channel.key)
                with pytest.raises(PaymentRefused):
                    await task
            node = next(node for node in swarm.nodes if channel.id in node.earnings.channels)
            state = await ledger.channel(channel.id)
            assert state is not None
            assert state.claimed == paid(node) > 0
            assert node.cashier.summary()["earned"] - paid(node) <= window(swarm)

    run(play())


def test_what_is_computed_anew_after_a_failure_stands_on_a_line_of_its_own(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS[::2]) as swarm, AsyncExitStack() as stack:
            lost = await swarm.start(4, 8, stack)
            async with swarm.client() as model:
                task = asyncio.create_task(model.generate(PROMPT, max_new_tokens=100, temperature=0))
                await asyncio.sleep(4)
                await swarm.start(4, 8, stack)
                await lost.endpoint.close()
                generation = await task
                await asyncio.sleep(1)
            assert generation.token_ids == expected(100)
            assert len(generation.receipt.hops) == 6
            first, second = generation.receipt.hops[:3], generation.receipt.hops[3:]
            done = generation.retries[0].tokens_done
            assert {hop.units["prefill"] for hop in first} == {4 * len(PROMPT)}
            # The two that stayed have the beginning kept; the new one computes all of it.
            assert all("prefill" not in hop.units for hop in second)
            assert all(hop.units["replay"] + hop.units.get("cached", 0) == 4 * (len(PROMPT) + done) for hop in second)
            assert generation.receipt.paid["credits"] == sum(hop.paid for hop in generation.receipt.hops)

    run(play())


def test_a_node_and_a_client_that_were_gone_go_on_with_their_channel(tmp_path: Path) -> None:
    async def play() -> None:
        async with paid_swarm(tmp_path, SPANS[:2], window_ns=WINDOW_NS) as swarm, AsyncExitStack() as stack:
            account, own = Account.generate(swarm.rng.randbytes), Account.generate(swarm.rng.randbytes)
            store, kept = ClientStore(tmp_path / "client.sqlite"), NodeStore(None, swarm.bank.domain, own.address)
            first = await swarm.start(8, 12, stack, account=own, store=kept)
            async with swarm.client(account=account, store=store) as model:
                before = await model.generate(PROMPT, max_new_tokens=60, temperature=0)
                await asyncio.sleep(1)
            await first.endpoint.close()
            await swarm.start(8, 12, stack, account=own, store=kept)
            async with swarm.client(account=account, store=ClientStore(tmp_path / "client.sqlite")) as model:
                after = await model.generate(PROMPT, max_new_tokens=60, temperature=0)
                await asyncio.sleep(1)
            channels = {hop.channel for hop in (*before.receipt.hops, *after.receipt.hops)}
            assert len(channels) == 3
            both = before.receipt.paid["credits"] + after.receipt.paid["credits"]
            assert sum(paid(node) for node in (*swarm.nodes[:2], swarm.nodes[-1])) == both

    run(play())
