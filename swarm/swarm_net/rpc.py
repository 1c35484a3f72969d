"""Services that the protocol does not know: a name, methods, bytes in, bytes out; the bank, for one.

Owns the table of a peer's services and the call of another's. What the bytes mean is the services' business.
"""

from collections.abc import Awaitable, Callable, Sequence

from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError
from swarm_net.links import Body, Link, PeerId
from swarm_net.messages import Message, Rpc, RpcReply
from swarm_net.session_errors import Unsupported

Service = Callable[[Link, str, bytes], Awaitable[bytes]]
"""Called with the asker's link, the method and its arguments; raises Unsupported for a method that it does not have."""


class RpcServices:
    """The services of one endpoint; one for each."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._services: dict[str, Service] = {}
        endpoint.serve(Rpc, self._answer)

    def add(self, name: str, service: Service) -> None:
        """Offer a service under a name."""
        assert name not in self._services
        self._services[name] = service

    async def _answer(self, link: Link, message: Rpc, body: bytes) -> tuple[Message, Body]:
        service = self._services.get(message.service)
        if service is None:
            raise Unsupported(feature=f"the service {message.service}")
        return RpcReply(request=0), await service(link, message.method, body)


class RemoteService:
    """A service of another peer; dials it when it is needed."""

    def __init__(
        self, endpoint: Endpoint, name: str, peer: PeerId, addresses: Sequence[str], *, timeout_s: float
    ) -> None:
        self._endpoint = endpoint
        self._name = name
        self._peer = peer
        self._addresses = tuple(addresses)
        self._timeout_s = timeout_s

    async def call(self, method: str, body: bytes) -> bytes:
        """Return the service's answer. Raises ConnectionError: who calls a service need not know links."""
        call = Rpc(request=0, service=self._name, method=method)
        try:
            link = await self._endpoint.link(self._peer, self._addresses, timeout_s=self._timeout_s)
            _, answer = await self._endpoint.request(link, call, timeout_s=self._timeout_s, body=body)
        except NetError as error:
            raise ConnectionError(str(error)) from error
        return bytes(answer)
