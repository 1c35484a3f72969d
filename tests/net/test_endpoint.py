"""Shared links, requests and their failures, over every transport."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable

import pytest

from swarm_net.clocks import SystemClock
from swarm_net.direct import DirectTransport
from swarm_net.direct_link import DirectLink
from swarm_net.endpoint import Endpoint, EndpointLimits
from swarm_net.errors import BadAddress, LinkLost, Malformed, NetError, PeerUnreachable, RequestTimeout, WrongPeer
from swarm_net.identity import Identity
from swarm_net.links import Body, Link, Transport
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import (
    Cancel,
    Failure,
    Fetch,
    File,
    Lookup,
    Message,
    ModelList,
    Models,
    Published,
    Records,
    Rpc,
    Step,
)
from swarm_net.session_errors import Busy, PositionGap, RemoteError, SessionUnknown

SESSION = bytes(16)
TIMEOUT_S = 30.0

MakeEndpoint = Callable[..., Endpoint]


@pytest.fixture(params=["memory", "direct"])
async def make(request: pytest.FixtureRequest) -> AsyncIterator[MakeEndpoint]:
    """Make endpoints that are all closed in the end, and check that no task of theirs is left."""
    network = MemoryNetwork()
    chance = random.Random(7)
    endpoints: list[Endpoint] = []

    def make_endpoint(limits: EndpointLimits | None = None) -> Endpoint:
        identity = Identity.generate(chance.randbytes)
        transport: Transport
        if request.param == "memory":
            transport = MemoryTransport(network, identity.peer_id)
        else:
            transport = DirectTransport(identity, SystemClock())
        endpoints.append(Endpoint(peer=identity.peer_id, transport=transport, clock=SystemClock(), limits=limits))
        return endpoints[-1]

    yield make_endpoint
    for endpoint in endpoints:
        await endpoint.close()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def connect(near: Endpoint, far: Endpoint) -> Link:
    listener = await far.listen("127.0.0.1", 0)
    return await near.link(far.peer, listener.addresses, timeout_s=TIMEOUT_S)


class Mailbox:
    """A message handler that lets a test wait for what comes."""

    def __init__(self) -> None:
        self._queue: asyncio.Queue[tuple[Link, Message, bytes]] = asyncio.Queue(100)

    def __call__(self, link: Link, message: Message, body: Body) -> None:
        self._queue.put_nowait((link, message, bytes(body)))

    async def next(self) -> tuple[Link, Message, bytes]:
        async with asyncio.timeout(TIMEOUT_S):
            return await self._queue.get()


async def wait_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110 - no event tells of what the tests wait for here
            await asyncio.sleep(0.005)


async def test_messages_go_to_the_handler_of_their_kind(make: MakeEndpoint) -> None:
    near, far, steps, cancels = make(), make(), Mailbox(), Mailbox()
    far.on(Step, steps)
    far.on(Cancel, cancels)
    link = await connect(near, far)
    step = Step(session=SESSION, frame=1, position=0, count=1)
    link.send(step, b"tokens")
    link.send(Cancel(session=SESSION))
    assert (await steps.next())[1:] == (step, b"tokens")
    accepted, message, _ = await cancels.next()
    assert (accepted.peer, message) == (near.peer, Cancel(session=SESSION))


async def test_links_are_shared_in_both_directions(make: MakeEndpoint) -> None:
    near, far = make(), make()
    link = await connect(near, far)
    assert await near.link(far.peer, link.remote_addresses, timeout_s=TIMEOUT_S) is link
    assert near.get(far.peer) is link
    assert near.get(far.peer, "bulk") is None
    await wait_until(lambda: far.get(near.peer) is not None)
    back = await far.link(near.peer, (), timeout_s=TIMEOUT_S)
    assert not back.dialed
    bulk = await near.link(far.peer, link.remote_addresses, lane="bulk", timeout_s=TIMEOUT_S)
    assert bulk is not link
    assert bulk.lane == "bulk"


async def test_one_dials_for_all(make: MakeEndpoint) -> None:
    near, far = make(), make()
    listener = await far.listen("127.0.0.1", 0)
    links = await asyncio.gather(
        *(near.link(far.peer, listener.addresses, timeout_s=TIMEOUT_S) for _ in range(20)),
        near.dial(listener.addresses[0], TIMEOUT_S),
    )
    assert all(link is links[0] for link in links)


async def test_a_caller_with_good_addresses_does_not_fail_with_one_without(make: MakeEndpoint) -> None:
    near, far = make(), make()
    listener = await far.listen("127.0.0.1", 0)
    bad, good = await asyncio.gather(
        near.link(far.peer, ("nonsense",), timeout_s=TIMEOUT_S),
        near.link(far.peer, listener.addresses, timeout_s=TIMEOUT_S),
        return_exceptions=True,
    )
    assert isinstance(bad, BadAddress)
    assert not isinstance(good, BaseException)


async def test_an_address_that_somebody_made_up_holds_nobody_else_up(make: MakeEndpoint) -> None:
    near, far, silent, ended = make(), make(), asyncio.Event(), asyncio.Event()
    listener = await far.listen("127.0.0.1", 0)

    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await silent.wait()
        writer.close()
        ended.set()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        made_up = f"/ip4/127.0.0.1/tcp/{port}/p2p/{far.peer}"
        waiting = asyncio.create_task(near.link(far.peer, (made_up,), timeout_s=TIMEOUT_S))
        await asyncio.sleep(0)
        link = await near.link(far.peer, listener.addresses, timeout_s=2)
        assert link.is_open
        silent.set()
        await asyncio.wait([waiting])
        if isinstance(link, DirectLink):
            await ended.wait()


async def test_dials_of_each_other_at_once_leave_both_with_a_link(make: MakeEndpoint) -> None:
    one, two, to_one, to_two = make(), make(), Mailbox(), Mailbox()
    one.on(Cancel, to_one)
    two.on(Cancel, to_two)
    at_one, at_two = await one.listen("127.0.0.1", 0), await two.listen("127.0.0.1", 0)
    first, second = await asyncio.gather(
        one.link(two.peer, at_two.addresses, timeout_s=TIMEOUT_S),
        two.link(one.peer, at_one.addresses, timeout_s=TIMEOUT_S),
    )
    first.send(Cancel(session=SESSION, reason="first"))
    second.send(Cancel(session=SESSION, reason="second"))
    assert (await to_two.next())[1] == Cancel(session=SESSION, reason="first")
    assert (await to_one.next())[1] == Cancel(session=SESSION, reason="second")
    assert first.is_open
    assert second.is_open


async def test_the_first_address_that_answers_is_taken(make: MakeEndpoint) -> None:
    near, far, other = make(), make(), make()
    listener, elsewhere = await far.listen("127.0.0.1", 0), await other.listen("127.0.0.1", 0)
    stranger = elsewhere.addresses[0].replace(other.peer, far.peer)
    link = await near.link(far.peer, ("nonsense", stranger, *listener.addresses), timeout_s=TIMEOUT_S)
    assert link.peer == far.peer


async def test_errors_of_dialing_are_typed(make: MakeEndpoint) -> None:
    near, far, other = make(), make(), make()
    listener = await far.listen("127.0.0.1", 0)
    stranger = listener.addresses[0].replace(far.peer, other.peer)
    with pytest.raises(BadAddress):
        await near.dial("nonsense", TIMEOUT_S)
    with pytest.raises(WrongPeer):
        await near.dial(stranger, TIMEOUT_S)
    with pytest.raises(WrongPeer):
        await near.link(other.peer, listener.addresses, timeout_s=TIMEOUT_S)
    with pytest.raises(PeerUnreachable, match="no address"):
        await near.link(other.peer, (), timeout_s=TIMEOUT_S)
    with pytest.raises(PeerUnreachable, match=r"not an address.*answers as"):
        await near.link(other.peer, ("nonsense", stranger), timeout_s=TIMEOUT_S)
    await listener.close()
    with pytest.raises(PeerUnreachable):
        await near.dial(listener.addresses[0], TIMEOUT_S)


async def test_requests_find_their_answers_in_any_order(make: MakeEndpoint) -> None:
    near, far = make(), make()

    async def slow_first(link: Link, message: Fetch, body: bytes) -> tuple[Message, Body]:
        await asyncio.sleep(0.02 if message.name == "a" else 0)
        return File(request=0), message.name.encode()

    far.serve(Fetch, slow_first)
    link = await connect(near, far)
    replies = await asyncio.gather(
        *(near.request(link, Fetch(request=0, revision="r", name=name), timeout_s=TIMEOUT_S) for name in "abc")
    )
    assert [bytes(body) for _, body in replies] == [b"a", b"b", b"c"]
    assert all(reply.found for reply, _ in replies)


async def test_both_ends_may_ask_over_one_link(make: MakeEndpoint) -> None:
    near, far = make(), make()

    async def nothing(link: Link, message: Lookup, body: bytes) -> tuple[Message, Body]:
        return Records(request=0), b""

    near.serve(Lookup, nothing)
    far.serve(Lookup, nothing)
    link = await connect(near, far)
    await wait_until(lambda: far.get(near.peer) is not None)
    back = far.get(near.peer)
    assert back is not None
    lookup = Lookup(request=0, revision="r")
    await asyncio.gather(
        near.request(link, lookup, timeout_s=TIMEOUT_S), far.request(back, lookup, timeout_s=TIMEOUT_S)
    )


async def test_failures_of_requests_are_typed(make: MakeEndpoint, caplog: pytest.LogCaptureFixture) -> None:
    near, far = make(), make()

    async def fail(link: Link, message: Lookup, body: bytes) -> tuple[Message, Body]:
        errors: dict[str, Exception] = {
            "session": SessionUnknown(hop=2, peer="x"),
            "net": PeerUnreachable(peer="p", addresses=(), reason="gone"),
            "bug": ZeroDivisionError("secret"),
        }
        raise errors[message.revision]

    async def wrong_kind(link: Link, message: Models, body: bytes) -> tuple[Message, Body]:
        return Published(request=0), b""

    far.serve(Lookup, fail)
    far.serve(Models, wrong_kind)
    link = await connect(near, far)
    with pytest.raises(SessionUnknown) as unknown:
        await near.request(link, Lookup(request=0, revision="session"), timeout_s=TIMEOUT_S)
    assert unknown.value.hop == 2
    with pytest.raises(RemoteError, match="gone"):
        await near.request(link, Lookup(request=0, revision="net"), timeout_s=TIMEOUT_S)
    with pytest.raises(RemoteError, match="ZeroDivisionError") as bug:
        await near.request(link, Lookup(request=0, revision="bug"), timeout_s=TIMEOUT_S)
    assert "secret" not in str(bug.value)
    with pytest.raises(Malformed, match="Published where ModelList"):
        await near.request(link, Models(request=0), timeout_s=TIMEOUT_S)
    with pytest.raises(NetError, match="does not support Fetch"):
        await near.request(link, Fetch(request=0, revision="r"), timeout_s=TIMEOUT_S)
    assert link.is_open


async def test_a_request_ends_with_its_timeout_or_its_link(make: MakeEndpoint) -> None:
    near, far, served = make(), make(), Mailbox()

    async def never(link: Link, message: Models, body: bytes) -> tuple[Message, Body]:
        served(link, message, b"")
        await asyncio.get_running_loop().create_future()
        return ModelList(request=0), b""

    far.serve(Models, never)
    link = await connect(near, far)
    with pytest.raises(RequestTimeout):
        await near.request(link, Models(request=0), timeout_s=0.01)
    waiting = asyncio.ensure_future(near.request(link, Models(request=0), timeout_s=TIMEOUT_S))
    await served.next()
    accepted, _, _ = await served.next()
    accepted.close()
    with pytest.raises(LinkLost):
        await waiting
    with pytest.raises(LinkLost):
        await near.request(link, Models(request=0), timeout_s=TIMEOUT_S)


def serve_slowly(endpoint: Endpoint, go: asyncio.Event) -> Mailbox:
    """Have all answers wait until `go`; what is asked arrives in the mailbox at once."""
    served = Mailbox()

    async def wait(link: Link, message: Models, body: bytes) -> tuple[Message, Body]:
        served(link, message, body)
        await go.wait()
        return ModelList(request=0), b""

    endpoint.serve(Models, wait)
    return served


async def test_only_so_many_requests_are_served_at_once(make: MakeEndpoint) -> None:
    near, far, go = make(), make(EndpointLimits(serving_per_peer=2)), asyncio.Event()
    served = serve_slowly(far, go)
    link = await connect(near, far)
    bulk = await near.link(link.peer, link.remote_addresses, lane="bulk", timeout_s=TIMEOUT_S)
    asked = [asyncio.ensure_future(near.request(link, Models(request=0), timeout_s=TIMEOUT_S)) for _ in range(2)]
    for _ in asked:
        await served.next()
    for each in (link, bulk):  # another link of a peer gives it no more
        with pytest.raises(Busy):
            await near.request(each, Models(request=0), timeout_s=TIMEOUT_S)
    go.set()
    await asyncio.gather(*asked)
    await near.request(link, Models(request=0), timeout_s=TIMEOUT_S)


async def test_only_so_many_requests_of_all_peers_are_served_at_once(make: MakeEndpoint) -> None:
    one, two, far, go = make(), make(), make(EndpointLimits(serving=2)), asyncio.Event()
    served = serve_slowly(far, go)
    link, other = await connect(one, far), await connect(two, far)
    asked = [asyncio.ensure_future(one.request(link, Models(request=0), timeout_s=TIMEOUT_S)) for _ in range(2)]
    for _ in asked:
        await served.next()
    with pytest.raises(Busy):
        await two.request(other, Models(request=0), timeout_s=TIMEOUT_S)
    go.set()
    await asyncio.gather(*asked)
    await two.request(other, Models(request=0), timeout_s=TIMEOUT_S)


async def test_an_answer_counts_only_on_the_link_of_its_question(make: MakeEndpoint) -> None:
    near, far, forger, asked = make(), make(), make(), Mailbox()

    async def answer_late(link: Link, message: Models, body: bytes) -> tuple[Message, Body]:
        asked(link, message, b"")
        await forged.wait()
        return ModelList(request=0), b"true"

    far.serve(Models, answer_late)
    forged = asyncio.Event()
    link, false_link = await connect(near, far), await connect(near, forger)
    await wait_until(lambda: forger.get(near.peer) is not None)
    waiting = asyncio.ensure_future(near.request(link, Models(request=0), timeout_s=TIMEOUT_S))
    _, question, _ = await asked.next()
    assert isinstance(question, Models)
    seen = Mailbox()
    near.on(Cancel, seen)
    at_forger = forger.get(near.peer)
    assert at_forger is not None
    at_forger.send(ModelList(request=question.request), b"false")
    at_forger.send(Cancel(session=SESSION))
    await seen.next()
    forged.set()
    assert bytes((await waiting)[1]) == b"true"
    assert false_link.is_open


async def test_what_a_handler_raises(make: MakeEndpoint) -> None:
    near, far, failures, lost = make(), make(), Mailbox(), asyncio.Event()
    errors = iter(
        [
            PositionGap(position=9, cached=3),
            LinkLost(peer="a third one", reason="gone"),
            ZeroDivisionError(),
        ]
    )

    def fail(link: Link, message: Step, body: Body) -> None:
        raise next(errors)

    far.on(Step, fail)
    near.on(Failure, failures)
    near.on_lost(lambda link, reason: lost.set())
    link = await connect(near, far)
    step = Step(session=SESSION, frame=1, position=9, count=1)
    link.send(step)
    _, failure, _ = await failures.next()
    assert isinstance(failure, Failure)
    assert (failure.session, failure.code) == (SESSION, "position_gap")
    link.send(step)
    assert link.is_open
    link.send(step)
    async with asyncio.timeout(TIMEOUT_S):
        await lost.wait()


async def test_idle_links_are_closed_and_warm_ones_are_not(make: MakeEndpoint) -> None:
    near, far, lost = make(EndpointLimits(idle_timeout_s=0.1)), make(), Mailbox()
    near.on_lost(lambda link, reason: lost(link, Cancel(session=SESSION, reason=str(reason)[-64:]), b""))
    link = await connect(near, far)
    link.keep_warm(1)
    bulk = await near.link(far.peer, link.remote_addresses, lane="bulk", timeout_s=TIMEOUT_S)
    idle, message, _ = await lost.next()
    assert idle is bulk
    assert isinstance(message, Cancel)
    assert message.reason.endswith("idle")
    assert near.get(far.peer) is link
    link.keep_warm(-1)
    assert (await lost.next())[0] is link
    assert near.get(far.peer) is None


async def test_close_ends_everything_at_once(make: MakeEndpoint) -> None:
    near, far, lost = make(), make(), asyncio.Event()

    async def never(link: Link, message: Rpc, body: bytes) -> tuple[Message, Body]:
        await asyncio.get_running_loop().create_future()
        return ModelList(request=0), b""

    far.serve(Rpc, never)
    near.on_lost(lambda link, reason: lost.set())
    link = await connect(near, far)
    asked = asyncio.ensure_future(near.request(link, Rpc(request=0, service="s", method="m"), timeout_s=TIMEOUT_S))
    await asyncio.sleep(0.01)
    await far.close()
    with pytest.raises(LinkLost):
        await asked
    async with asyncio.timeout(TIMEOUT_S):
        await lost.wait()
    with pytest.raises(PeerUnreachable):
        await near.link(far.peer, link.remote_addresses, timeout_s=TIMEOUT_S)
    with pytest.raises(PeerUnreachable, match="closed"):
        await far.link(near.peer, (), timeout_s=TIMEOUT_S)
