"""Links within one process: order, delays, loss, crashes."""

import asyncio
import random

import pytest

from swarm_net.errors import BadAddress, LinkLost, Malformed, NetError, PeerUnreachable, PortInUse, WrongPeer
from swarm_net.identity import Identity
from swarm_net.links import Body, Link, LinkHandler, PeerId
from swarm_net.memory import MemoryNetwork, MemoryTransport
from swarm_net.messages import AnyMessage, Cancel, Failure, Lane, Models, Rpc, Step

SESSION = bytes(16)


def peer(number: int) -> PeerId:
    return Identity.generate(random.Random(number).randbytes).peer_id


class Recorder:
    """Keeps what a link hands over, and wakes who waits for it."""

    def __init__(self) -> None:
        self.received: list[tuple[AnyMessage, bytes]] = []
        self.lost: list[NetError] = []
        self.link: Link | None = None
        self._changed = asyncio.Event()

    def accept(self, link: Link) -> LinkHandler:
        self.link = link
        self._changed.set()
        return self

    def on_message(self, link: Link, message: AnyMessage, body: Body) -> None:
        self.received.append((message, bytes(body)))
        self._changed.set()

    def on_lost(self, link: Link, reason: NetError) -> None:
        self.lost.append(reason)
        self._changed.set()

    async def wait_for(self, messages: int = 0, lost: int = 0) -> None:
        async with asyncio.timeout(30):
            while len(self.received) < messages or len(self.lost) < lost:
                self._changed.clear()
                await self._changed.wait()


async def joined(network: MemoryNetwork) -> tuple[Link, Recorder, Link, Recorder]:
    """Return a link with what its two ends hear, the dialer's first."""
    near, far = Recorder(), Recorder()
    listener = await MemoryTransport(network, peer(2)).listen("", 0, far.accept)
    link = await MemoryTransport(network, peer(1)).dial(listener.addresses[0], near, lane="decode", timeout_s=5)
    assert far.link is not None
    return link, near, far.link, far


async def test_messages_arrive_in_order_both_ways() -> None:
    link, near, other, far = await joined(MemoryNetwork())
    for number in range(50):
        link.send(Models(request=number), bytes([number]))
        other.send(Models(request=1000 + number))
    await far.wait_for(50)
    await near.wait_for(50)
    assert far.received == [(Models(request=number), bytes([number])) for number in range(50)]
    assert near.received == [(Models(request=1000 + number), b"") for number in range(50)]
    assert (link.peer, link.dialed, other.peer, other.dialed) == (peer(2), True, peer(1), False)


async def test_a_later_frame_never_overtakes() -> None:
    chance = random.Random(1)

    def delay(source: PeerId, target: PeerId, frame_bytes: int, lane: Lane) -> float | None:
        return chance.choice([0.0, 0.001, 0.003])

    link, _, _, far = await joined(MemoryNetwork(delay))
    for number in range(100):
        link.send(Models(request=number))
        await asyncio.sleep(chance.choice([0.0, 0.0005]))
    await far.wait_for(100)
    assert [message for message, _ in far.received] == [Models(request=number) for number in range(100)]


async def test_the_greeting_measures_the_round_trip() -> None:
    link, _, other, _ = await joined(MemoryNetwork(lambda *_: 0.01))
    assert link.rtt_s >= 0.02
    assert other.rtt_s == 0.0


async def test_close_delivers_what_was_sent_and_tells_both_ends_once() -> None:
    link, near, other, far = await joined(MemoryNetwork())
    link.send(Models(request=1))
    link.close("done")
    link.close("again")
    await far.wait_for(1, lost=1)
    await near.wait_for(lost=1)
    assert [str(error) for error in near.lost] == [f"link to {peer(2)} lost: done"]
    assert [str(error) for error in far.lost] == [f"link to {peer(1)} lost: closed by the peer"]
    assert not link.is_open
    assert not other.is_open
    with pytest.raises(LinkLost):
        other.send(Models(request=2))


async def test_a_lost_frame_ends_the_link_at_both_ends() -> None:
    network = MemoryNetwork()
    link, near, _, far = await joined(network)
    network.delay = lambda *_: None
    link.send(Models(request=1))
    await near.wait_for(lost=1)
    await far.wait_for(lost=1)
    assert far.received == []


@pytest.mark.parametrize("notice_s", [0.0, 0.02])
async def test_a_crash_is_noticed_at_the_other_end_alone(notice_s: float) -> None:
    network = MemoryNetwork()
    link, near, other, far = await joined(network)
    network.disconnect(peer(2), notice_s=notice_s)
    link.send(Models(request=1))  # nobody can know yet
    await near.wait_for(lost=1)
    assert far.received == []
    assert far.lost == []
    with pytest.raises(LinkLost):
        other.send(Models(request=2))


async def test_a_crashed_peer_is_dialed_again_after_its_restart() -> None:
    network = MemoryNetwork()
    link, near, _, far = await joined(network)
    network.disconnect(peer(2))
    dialer = MemoryTransport(network, peer(3))
    with pytest.raises(PeerUnreachable):
        await dialer.dial(link.remote_addresses[0], near, lane="decode", timeout_s=1)
    restarted = await MemoryTransport(network, peer(2)).listen("", 0, far.accept)
    assert restarted.addresses == link.remote_addresses
    assert (await dialer.dial(restarted.addresses[0], near, lane="bulk", timeout_s=1)).is_open


async def test_dialing_errors() -> None:
    network, nobody = MemoryNetwork(), Recorder()
    transport = MemoryTransport(network, peer(1))
    listener = await MemoryTransport(network, peer(2)).listen("", 4001, nobody.accept)
    address = listener.addresses[0]
    with pytest.raises(WrongPeer):
        await transport.dial(address.replace(peer(2), peer(3)), nobody, lane="decode", timeout_s=1)
    with pytest.raises(PeerUnreachable):
        await transport.dial(address.replace("4001", "4002"), nobody, lane="decode", timeout_s=1)
    with pytest.raises(BadAddress):
        await transport.dial("nonsense", nobody, lane="decode", timeout_s=1)
    network.delay = lambda *_: None
    with pytest.raises(PeerUnreachable, match=r"within 0\.01 s"):
        await transport.dial(address, nobody, lane="decode", timeout_s=0.01)


async def test_a_port_is_taken_once() -> None:
    transport, nobody = MemoryTransport(MemoryNetwork(), peer(1)), Recorder()
    listener = await transport.listen("", 5000, nobody.accept)
    with pytest.raises(PortInUse):
        await transport.listen("", 5000, nobody.accept)
    await listener.close()
    assert (await transport.listen("", 5000, nobody.accept)).addresses == listener.addresses


async def test_what_is_too_much_ends_the_link() -> None:
    link, near, _, _ = await joined(MemoryNetwork(lambda *_: 0.001))
    with pytest.raises(Malformed):
        link.send(Rpc(request=1, service="", method=""), bytes((64 << 20) + 1))
    body = bytes(30 << 20)
    link.send(Rpc(request=1, service="", method=""), body)
    link.send(Rpc(request=2, service="", method=""), body)
    link.send(Rpc(request=3, service="", method=""), body)
    with pytest.raises(LinkLost, match="under way"):
        link.send(Rpc(request=4, service="", method=""), b"")
    await near.wait_for(lost=1)


async def test_a_message_that_demands_the_unknown_is_refused() -> None:
    link, near, _, far = await joined(MemoryNetwork())
    link.send(Step(session=SESSION, frame=1, position=0, count=1, must=("teleport",)))
    link.send(Cancel(session=SESSION))
    await near.wait_for(1)
    await far.wait_for(1)
    refusal = near.received[0][0]
    assert isinstance(refusal, Failure)
    assert (refusal.code, refusal.session, "teleport" in refusal.text) == ("not_understood", SESSION, True)
    assert [message for message, _ in far.received] == [Cancel(session=SESSION)]


async def test_a_handler_that_raises_ends_the_link() -> None:
    link, near, other, far = await joined(MemoryNetwork())
    far.received = None  # type: ignore[assignment]
    link.send(Models(request=1))
    await near.wait_for(lost=1)
    assert not other.is_open
