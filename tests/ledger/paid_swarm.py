"""Priced nodes, a bank and a paying client in virtual time: the production code of all three, over memory links.

The bank keeps its books in memory; nodes compute digests. A test sees every voucher store, and can drop what it likes.
"""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path

from swarm_client.model import AsyncRemoteModel
from swarm_client.wallet import Wallet
from swarm_client.world import World
from swarm_ledger.accounts import Account
from swarm_ledger.bank import Bank
from swarm_ledger.bank_service import BankService
from swarm_ledger.channels import VoucherDigests
from swarm_ledger.client_store import ClientStore
from swarm_ledger.currencies import CREDITS
from swarm_ledger.earning import Earnings
from swarm_ledger.embedded import EmbeddedLedger
from swarm_ledger.ledger import Ledger
from swarm_ledger.node_store import NodeStore
from swarm_ledger.quotes import Quote, Rates
from swarm_ledger.sealing import SealKey
from swarm_ledger.starting_credit import StartingCredit
from swarm_net.directory import MemoryDirectory, MemoryStore
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.identity import Identity
from swarm_net.links import PeerId
from swarm_net.manifest import Manifest
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import ModelId
from swarm_node.announcer import Announcement, Announcer
from swarm_node.cashier import Cashier
from swarm_node.compute import VirtualCompute
from swarm_node.executor import SpanFacts
from swarm_node.limits import NodeLimits
from swarm_node.node import Node
from swarm_node.pricing import make_quote
from swarm_node.scheduler import Scheduler
from swarm_sim.digest_executor import MAX_CONTEXT_TOKENS, DigestExecutor, Speed, digest_facts
from swarm_sim.digest_model import DIGEST_BYTES, VOCABULARY
from swarm_sim.virtual_clock import VirtualClock
from swarm_sim.virtual_loop import running_loop

BLOCKS = 12
PRICE_PER_HOUR = CREDITS.parse("36")  # a hundredth of a credit a second
LINK_S = 0.01
RATES = Rates(
    prefill=(1000, 1100),
    decode=(20_000, 21_000),
    draft=(5000,),
    replay=(1000, 1100),
    cached=10,
    head=777,
    page_second=3,
)


@dataclass
class PaidNode:
    """One node and its money."""

    peer: PeerId
    node: Node
    cashier: Cashier
    earnings: Earnings
    store: NodeStore
    ledger: EmbeddedLedger
    endpoint: Endpoint


@dataclass
class PaidSwarm:
    """All of it; `files` is a folder that stays empty."""

    files: Path
    seed: int = 0
    price_per_hour: int = PRICE_PER_HOUR
    window_ns: int = 2_000_000_000
    min_allocation_ns: int = 10_000_000_000
    network: MemoryNetwork = field(default_factory=lambda: MemoryNetwork(lambda *_: LINK_S))
    nodes: list[PaidNode] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.rng = random.Random(self.seed)
        self.clock = VirtualClock(running_loop())
        self.store = MemoryStore(self.clock)
        bank_account = Account.generate(self.rng.randbytes)
        self.bank = Bank(None, bank_account.address)
        gift = StartingCredit(CREDITS.parse("100"), CREDITS.parse("1000"), CREDITS.parse("100000"))
        self.service = BankService(self.bank, bank_account, gift)
        self.manifest = Manifest(
            model_type="digest",
            architectures=("DigestModel",),
            num_blocks=BLOCKS,
            vocab_size=VOCABULARY,
            hidden_size=DIGEST_BYTES,
            max_position=MAX_CONTEXT_TOKENS,
            eos_token_ids=(),
            files={},
            weights="",
            commit="",
        )
        self.model = ModelId(name="digests", revision=self.manifest.revision)

    @property
    def now_s(self) -> float:
        return self.clock.wall_ns() / 1e9

    async def call_bank(self, method: str, request: bytes) -> bytes:
        """Carry a request to the bank."""
        return self.service.handle(method, request, origin="10.0.0.1", now_s=self.now_s)

    async def ledger(self, account: Account) -> EmbeddedLedger:
        """Return the bank as an account sees it."""
        return await EmbeddedLedger.connect(
            account,
            self.service.address,
            self.call_bank,
            clock=lambda: self.now_s,
            entropy=self.rng.randbytes,
        )

    async def start(
        self,
        start: int,
        end: int,
        stack: AsyncExitStack,
        *,
        store: NodeStore | None = None,
        account: Account | None = None,
        cashier_class: type[Cashier] = Cashier,
        node_class: type[Node] = Node,
        decode_tokens_per_s: float = 100.0,
        rates: Rates = RATES,
        executor: Callable[[SpanFacts], DigestExecutor] = lambda facts: DigestExecutor(facts, Speed()),
    ) -> PaidNode:
        """Add a node; with a store and an account one that was there before, with other classes one that cheats."""
        identity = Identity.generate(self.rng.randbytes)
        endpoint = Endpoint(
            peer=identity.peer_id, transport=MemoryTransport(self.network, identity.peer_id), clock=self.clock
        )
        stack.push_async_callback(endpoint.close)
        listener = await endpoint.listen("0.0.0.0", 4001)
        directory = MemoryDirectory(self.store)
        files = {self.manifest.revision: (self.manifest.encode(), self.files)}
        discovery = DiscoveryService(endpoint, directory, clock=self.clock, files=files)
        stack.push_async_callback(discovery.close)
        account = account or Account.generate(self.rng.randbytes)
        ledger = await self.ledger(account)
        store = store or NodeStore(None, ledger.domain, account.address)
        earnings = Earnings(VoucherDigests(ledger.domain), account.address)
        store.restore(earnings)
        facts = digest_facts(start, end, BLOCKS, kv_tokens=100_000)
        seal_key = SealKey(self.rng.randbytes(32))
        cashier = cashier_class(
            quote=partial(self._quote, account=account, seal_key=seal_key, page_size=facts.page_size, rates=rates),
            account=account,
            node_key=identity.public_key,
            seal_key=seal_key,
            ledger=ledger,
            earnings=earnings,
            store=store,
            clock=self.clock,
        )
        node = node_class(
            endpoint=endpoint,
            compute=VirtualCompute(executor(facts), Scheduler(chunk_tokens=256), self.clock),
            facts=facts,
            model=self.model,
            clock=self.clock,
            limits=NodeLimits(),
            cashier=cashier,
        )
        await stack.enter_async_context(node)
        announcer = Announcer(
            Announcement(
                model=self.model,
                facts=facts,
                addresses=listener.addresses,
                prefill_tokens_per_s=1000.0,
                decode_tokens_per_s=decode_tokens_per_s,
                software="test",
            ),
            identity=identity,
            directory=directory,
            libp2p=tuple,
            load=node.load,
            clock=self.clock,
            rng=self.rng,
            quote=cashier.quote,
        )
        await announcer.publish()
        paid = PaidNode(identity.peer_id, node, cashier, earnings, store, ledger, endpoint)
        self.nodes.append(paid)
        self.addresses += listener.addresses
        return paid

    def _quote(self, now_s: float, *, account: Account, seal_key: SealKey, page_size: int, rates: Rates) -> Quote:
        quote = make_quote(
            now_s,
            rates=rates,
            price_per_hour=self.price_per_hour,
            page_size=page_size,
            domain=self.bank.domain,
            payee=account.address,
            currency=CREDITS,
            seal_key=seal_key.public,
        )
        fields = {name: getattr(quote, name) for name in quote.__struct_fields__}
        return Quote(**{**fields, "window_ns": self.window_ns, "min_allocation_ns": self.min_allocation_ns})

    @asynccontextmanager
    async def client(
        self,
        *,
        store: ClientStore | None = None,
        account: Account | None = None,
        daily: Decimal | None = None,
        wallet_class: type[Wallet] = Wallet,
    ) -> AsyncIterator[AsyncRemoteModel]:
        """Connect a client with a wallet of its own."""
        peer = Identity.generate(self.rng.randbytes).peer_id
        own = account or Account.generate(self.rng.randbytes)
        kept = store or ClientStore(None)

        async def ledger(account: Account, quote: Quote) -> Ledger:
            return await self.ledger(account)

        def wallet(endpoint: Endpoint, stack: AsyncExitStack) -> Wallet:
            own_wallet = wallet_class(
                files=lambda: (own, kept),
                ledger=ledger,
                clock=self.clock,
                entropy=self.rng.randbytes,
                client=endpoint.peer,
                daily=daily,
            )
            stack.callback(own_wallet.close)
            return own_wallet

        world = World(
            peer=peer,
            transport=MemoryTransport(self.network, peer),
            clock=self.clock,
            entropy=self.rng.randbytes,
            rng=self.rng,
            wallet=wallet,
        )
        async with AsyncRemoteModel.connect(
            self.model.name, self.addresses[:3], cache_dir=self.files, world=world
        ) as model:
            yield model


@asynccontextmanager
async def paid_swarm(files: Path, spans: Sequence[tuple[int, int]], **options: object) -> AsyncIterator[PaidSwarm]:
    """Run a swarm of such nodes."""
    async with AsyncExitStack() as stack:
        swarm = PaidSwarm(files, **options)  # type: ignore[arg-type]
        for start, end in spans:
            await swarm.start(start, end, stack)
        yield swarm
