"""The node program: builds a node from real parts, runs it until it is told to stop, and takes it apart in order.

Owns the order of starting: first what can be checked alone (data directory, identity, checkpoint, blocks, port, device,
memory), then the way into the swarm, then what takes long (the DHT daemon and loading the span, side by side). A signal
cancels whatever is under way; what was built is taken apart in reverse, sessions first, so that their clients hear at
once.
"""

import asyncio
import contextlib
import logging
import signal
from collections.abc import Sequence
from contextlib import AsyncExitStack
from random import Random
from typing import Any

from swarm_ledger.accounts import address_text
from swarm_model.checkpoint import Checkpoint
from swarm_net.clocks import SystemClock
from swarm_net.dht import DhtConfig, HivemindDirectory
from swarm_net.direct import DirectTransport
from swarm_net.directory import Directory, MemoryDirectory, MemoryStore, RemoteDirectory
from swarm_net.discovery import DiscoveryService
from swarm_net.endpoint import Endpoint
from swarm_net.errors import BadRecord, DirectoryDown, NetError
from swarm_net.identity import Identity
from swarm_net.links import Link
from swarm_net.manifest import Manifest, manifest_of
from swarm_net.messages import ModelId
from swarm_net.records import Record, open_record
from swarm_net.rpc import RpcServices
from swarm_net.version import PACKAGE, release
from swarm_node.announcer import Announcement, Announcer
from swarm_node.compute import ComputeThread
from swarm_node.data_dir import DataDir, default_base
from swarm_node.errors import BadSetting
from swarm_node.gathering import Gathering
from swarm_node.grammars import GrammarProcesses
from swarm_node.income import Income, Machine, describe
from swarm_node.joining import announced, libp2p_listen, listen, reach
from swarm_node.limits import NodeLimits
from swarm_node.node import Node
from swarm_node.operator import serve_operator
from swarm_node.pricing import Measured, rate
from swarm_node.reporting import JsonReporter, PeopleReporter, Reporter
from swarm_node.scheduler import Scheduler
from swarm_node.settings import Settings
from swarm_node.span_choice import automatic_span, examine, fixed_span, in_thread, load
from swarm_node.turns import Turns

FAREWELL_TIMEOUT_S = 1.0


def main(settings: Settings, *, as_json: bool, warnings: Sequence[str] = ()) -> None:
    """Run a node until a signal stops it; raises what a person can act on."""
    if not settings.model:
        raise BadSetting("model", "", "nowhere", "say what to serve: --model with a directory or an id of the hub")
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    reporter = JsonReporter() if as_json else PeopleReporter()
    for warning in warnings:
        reporter.event("warning", message=warning)
    with asyncio.Runner(loop_factory=_event_loop) as runner:
        runner.run(_until_signal(settings, reporter))


def _event_loop() -> asyncio.AbstractEventLoop:
    try:
        import uvloop
    except ImportError:  # not made for this system
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _until_signal(settings: Settings, reporter: Reporter) -> None:
    serving = asyncio.current_task()
    assert serving is not None
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, serving.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await _serve(settings, reporter)


async def _serve(settings: Settings, reporter: Reporter) -> None:
    clock, rng = SystemClock(), Random()  # noqa: S311 (jitter and ties)
    async with AsyncExitStack() as stack:
        data_dir = DataDir.claim(settings.data_dir, default_base())
        stack.callback(data_dir.close)
        identity_file = data_dir.identity_file(settings.identity)
        identity = Identity.load_or_create(identity_file)
        reporter.event("starting", model=settings.model, data_dir=str(data_dir.path), peer_id=identity.peer_id)

        checkpoint = await in_thread(
            lambda: Checkpoint.open(settings.model, revision=settings.revision or None), "open checkpoint"
        )
        manifest = await in_thread(lambda: manifest_of(checkpoint.directory, commit=checkpoint.commit), "read manifest")
        span = fixed_span(settings.blocks, manifest.num_blocks)
        transport = DirectTransport(identity, clock)
        endpoint = Endpoint(peer=identity.peer_id, transport=transport, clock=clock)
        stack.push_async_callback(endpoint.close)
        listener = await listen(endpoint, settings.listen)
        addresses = transport.announced = announced(listener, identity.peer_id, settings.announce)
        hardware = await in_thread(lambda: examine(settings, checkpoint, span), "import torch")
        bootstrap = await reach(endpoint, settings.bootstrap)
        if bootstrap:
            reporter.event("joined", bootstrap=[link.remote_addresses[0] for link in bootstrap])
        if span is None:
            records = await _records(RemoteDirectory(endpoint, settings.bootstrap), manifest, clock)
            span = automatic_span(settings, checkpoint, hardware, records, rng)
        reporter.event(
            "span",
            blocks=list(span),
            num_blocks=manifest.num_blocks,
            dtype=hardware.dtype_name,
            quantization=settings.quantize,
            device=str(hardware.device),
            threads=hardware.threads,
        )
        async with asyncio.TaskGroup() as side_by_side:
            joining = side_by_side.create_task(
                _directory(settings, identity, data_dir, bootstrap, endpoint, transport, stack, reporter)
            )
            loading = side_by_side.create_task(
                in_thread(lambda: load(settings, checkpoint, span, hardware, reporter), "load span")
            )
        directory, (executor, rates) = joining.result(), loading.result()

        model = ModelId(name=checkpoint.name, revision=manifest.revision)
        files = {manifest.revision: (manifest.encode(), checkpoint.directory)}
        discovery = DiscoveryService(endpoint, directory, clock=clock, files=files)
        stack.push_async_callback(discovery.close)
        facts = executor.facts
        turns = Turns(facts.pool_tokens, facts.page_size) if facts.swapped_tokens else None
        compute = ComputeThread(executor, Scheduler(turns=turns, gathering=Gathering()), clock)
        grammars = None
        stop_ids, tokenizer_file = manifest.eos_token_ids, checkpoint.directory / "tokenizer.json"
        if span[1] == manifest.num_blocks and GrammarProcesses.are_possible(tokenizer_file, stop_ids):
            processes = GrammarProcesses(tokenizer_file, facts.vocab_size, stop_ids)
            grammars = await stack.enter_async_context(processes)
        services = RpcServices(endpoint)
        income = Income(settings, data_dir.path, identity, endpoint, services, addresses, clock, reporter)
        measured = Measured(rates.prefill_tokens_per_s, rates.decode_tokens_per_s)
        machine = Machine(hardware.device_name, rate(measured, span[1] - span[0]), facts.page_size)
        cashier = await income.open(bootstrap, machine, stack)
        node = Node(
            endpoint=endpoint,
            compute=compute,
            facts=facts,
            model=model,
            clock=clock,
            limits=NodeLimits(
                idle_timeout_s=settings.idle_timeout,
                prefix_sharing=settings.share_prefixes,
                prefill_tokens_per_s=rates.prefill_tokens_per_s,
            ),
            grammars=grammars,
            cashier=cashier,
        )
        announcer = Announcer(
            Announcement(
                model=model,
                facts=facts,
                addresses=addresses,
                prefill_tokens_per_s=rates.prefill_tokens_per_s,
                decode_tokens_per_s=rates.decode_tokens_per_s,
                software=f"{PACKAGE}/{release()}",
                region=settings.region,
                takes_grammar=grammars is not None,
            ),
            identity=identity,
            directory=directory,
            libp2p=lambda: tuple(getattr(directory, "addresses", ())),
            load=node.load,
            clock=clock,
            rng=rng,
            quote=cashier.quote if cashier is not None else None,
        )
        await stack.enter_async_context(node)
        stack.push_async_callback(_say_goodbye, node, announcer, reporter)
        await announcer.publish()

        ready: dict[str, Any] = {
            "peer_id": identity.peer_id,
            "model": model.name,
            "revision": model.revision,
            "source": settings.model,
            "blocks": list(span),
            "num_blocks": manifest.num_blocks,
            "dtype": facts.dtype,
            "quantization": facts.quantization or "none",
            "mode": facts.mode,
            "bootstrap": list(addresses),
            "kv_tokens": facts.kv_tokens,
            "weight_bytes": facts.weight_bytes,
            "prefill_tokens_per_s": round(rates.prefill_tokens_per_s, 1),
            "decode_tokens_per_s": round(rates.decode_tokens_per_s, 1),
        }
        if cashier is not None:
            ready["price"] = describe(cashier, span, manifest.num_blocks)

        if income.host is not None:
            ready["bank"] = address_text(income.host.account.address)

        def status() -> dict[str, Any]:
            money = {"price": describe(cashier, span, manifest.num_blocks)} if cashier is not None else {}
            return {**ready, **_activity(node), **money}

        serve_operator(
            services,
            endpoint.peer,
            status,
            redeem=cashier.redeem if cashier is not None else None,
            mint=income.host.mint if income.host is not None else None,
        )
        data_dir.write_state({**ready, "identity": str(identity_file), "operator_address": listener.addresses[-1]})
        reporter.event("ready", **ready)
        lasting = [asyncio.create_task(announcer.run()), asyncio.create_task(compute.ended())]
        if cashier is not None:
            lasting.append(asyncio.create_task(cashier.run()))
        for task in lasting:
            stack.callback(task.cancel)
        ended, _ = await asyncio.wait(lasting, return_when=asyncio.FIRST_COMPLETED)
        for task in ended:
            task.result()


def _activity(node: Node) -> dict[str, Any]:
    load = node.load()
    return {
        "sessions": load.sessions,
        "busy": round(load.busy, 3),
        "kv_tokens_free": load.kv_tokens_free,
        "sessions_served": node.served.sessions,
        "sessions_failed": node.served.failed,
        "tokens_computed": node.served.tokens,
    }


async def _say_goodbye(node: Node, announcer: Announcer, reporter: Reporter) -> None:
    """End the sessions, tell the swarm, tell the operator."""
    reporter.event("stopping", sessions=len(node.table.sessions))
    node.drain()
    await announcer.publish("draining", timeout_s=FAREWELL_TIMEOUT_S)
    reporter.event("stopped", sessions=node.served.sessions, tokens=node.served.tokens)


async def _records(directory: Directory, manifest: Manifest, clock: SystemClock) -> list[Record]:
    """What the swarm serves of a model already; nothing, for the first node of a swarm."""
    try:
        answers = await directory.lookup(manifest.revision)
    except NetError:
        return []
    records = []
    for signed in answers:
        with contextlib.suppress(BadRecord):
            records.append(open_record(signed, clock.wall_ns()))
    return records


async def _directory(
    settings: Settings,
    identity: Identity,
    data_dir: DataDir,
    bootstrap: list[Link],
    endpoint: Endpoint,
    transport: DirectTransport,
    stack: AsyncExitStack,
    reporter: Reporter,
) -> Directory:
    """The DHT; without it the directory of the bootstrap nodes, or for the first node of a swarm its own."""

    def announce(addresses: tuple[str, ...]) -> None:
        transport.libp2p_addresses = addresses

    if settings.dht != "off":
        config = DhtConfig(
            data_dir=data_dir.path,
            listen=tuple(settings.libp2p_listen) or libp2p_listen(settings.listen),
            initial_peers=tuple(address for link in bootstrap for address in link.libp2p_addresses),
        )
        dht = HivemindDirectory(identity, config, clock=SystemClock(), on_addresses=announce)
        stack.push_async_callback(dht.close)
        try:
            if bootstrap and not config.initial_peers:  # one of our own would be another swarm
                raise DirectoryDown(reason="the bootstrap nodes are in none that could be joined")
            await dht.start()
        except DirectoryDown as error:
            if settings.dht == "on":
                raise
            reporter.event("warning", message=f"{error}; records go through other nodes")
        else:
            return dht
    if settings.bootstrap:
        return RemoteDirectory(endpoint, settings.bootstrap)
    return MemoryDirectory(MemoryStore(SystemClock()))
