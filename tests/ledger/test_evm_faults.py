"""Whatever a chain, its mempool and a second process do meanwhile: what was sent happens, and happens once."""

import asyncio

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_ledger.accounts import Account
from swarm_ledger.evm.fees import GWEI
from swarm_ledger.evm.questions import Call
from swarm_ledger.evm.sending import Sender, Sending
from swarm_sim.local_chain import LocalChain
from swarm_sim.virtual_loop import run
from tests.ledger.evm_world import PAYER, endpoints

RECEIVER = Account(b"g" * 32)
SENDING = Sending(confirmations=3, stuck_after_s=30, give_up_after_s=10**6)
DIGIT = 2  # bits
MOST_DEPTH = SENDING.confirmations - 1  # of reorganisations: what is confirmed stays

Step = tuple[str, int]
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.integers(0, 1)),  # which of two processes
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("send"), st.integers(0, 1)),
        st.tuples(st.just("cancel"), st.just(0)),
        st.tuples(st.just("mine"), st.integers(1, 3)),
        st.tuples(st.just("mine"), st.integers(1, 3)),
        st.tuples(st.just("reorganize, keep"), st.integers(1, MOST_DEPTH)),
        st.tuples(st.just("reorganize, drop"), st.integers(1, MOST_DEPTH)),
        st.tuples(st.just("forget"), st.just(0)),
        st.tuples(st.just("fee"), st.integers(0, 6)),
        st.tuples(st.just("unreachable"), st.booleans().map(int)),
        st.tuples(st.just("tells"), st.booleans().map(int)),
        st.tuples(st.just("pause"), st.sampled_from([1, 5, 20, 40, 200])),
    ),
    min_size=8,
    max_size=30,
)


class Story:
    """A chain and two processes with one account; each gift counts in a digit of its own."""

    def __init__(self, chain: LocalChain, senders: list[Sender]) -> None:
        self.chain = chain
        self.senders = senders
        self.tasks: list[asyncio.Task[object]] = []

    async def step(self, what: str, number: int) -> None:
        chain = self.chain
        match what:
            case "send":
                call = Call(RECEIVER.address, value=1 << DIGIT * len(self.tasks))
                self.tasks.append(asyncio.create_task(self.senders[number].send(call)))
            case "cancel" if self.tasks:
                self.tasks[-1].cancel()
            case "mine":
                chain.mine(number)
            case "reorganize, keep" | "reorganize, drop":
                chain.reorganize(number, keeps=what.endswith("keep"))
                chain.mine(number)  # another branch is longer, or it would not be one
            case "forget":
                chain.forget()
            case "fee":
                chain.least_fee = number * GWEI
            case "unreachable":
                chain.is_reachable = not number
            case "tells":
                chain.tells_what_waits = bool(number)
            case "pause":
                await asyncio.sleep(number)
        await asyncio.sleep(0.5)

    async def finish(self) -> None:
        """Let the chain be well until all is done."""
        chain = self.chain
        chain.is_reachable, chain.least_fee = True, 0
        for _ in range(400):
            await asyncio.sleep(12)
            chain.mine()
            if all(task.done() for task in self.tasks):
                return

    def check(self, arrived: int) -> None:
        """Each gift came once if its sender was told so; a sender who was told nothing cannot know, but not twice."""
        for number, task in enumerate(self.tasks):
            assert task.done()
            was_told = not task.cancelled() and task.exception() is None
            assert (arrived >> DIGIT * number) % (1 << DIGIT) in ((1,) if was_told else (0, 1))


async def tell(steps: list[Step]) -> None:
    chain = LocalChain()
    chain.is_mining = False
    chain.mine(2 * MOST_DEPTH)
    chain_id = await endpoints(chain).chain_id()
    story = Story(chain, [Sender(endpoints(chain), PAYER, chain_id, SENDING) for _ in range(2)])
    for what, number in steps:
        await story.step(what, number)
    await story.finish()
    chain.mine(SENDING.confirmations)
    story.check(await Sender(endpoints(chain), RECEIVER, chain_id, SENDING).coins())


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(STEPS)
def test_what_was_sent_happens_once(steps: list[Step]) -> None:
    run(tell(steps))
