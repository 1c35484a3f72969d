"""Brings what arrives on the endpoint's links to the session that it is about.

Owns the register of live sessions by id; a message for one that is over, or not ours, is dropped: late answers of a
session that was given up are normal. One for each `AsyncRemoteModel`.
"""

from typing import Protocol

from swarm_net.endpoint import Endpoint
from swarm_net.errors import NetError
from swarm_net.links import Body, Link
from swarm_net.messages import Failure, Opened, Refuse, Result


class Receiver(Protocol):
    """A live session as the dispatcher sees it; its methods raise nothing."""

    id: bytes

    def on_opened(self, link: Link, message: Opened) -> None: ...
    def on_refuse(self, link: Link, message: Refuse) -> None: ...
    def on_result(self, link: Link, message: Result) -> None: ...
    def on_failure(self, link: Link, message: Failure) -> None: ...
    def on_lost(self, link: Link, reason: NetError) -> None: ...


class Dispatcher:
    """Knows which session is whose."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._receivers: dict[bytes, Receiver] = {}
        endpoint.on(Opened, self._on_opened)
        endpoint.on(Refuse, self._on_refuse)
        endpoint.on(Result, self._on_result)
        endpoint.on(Failure, self._on_failure)
        endpoint.on_lost(self._on_lost)

    def __len__(self) -> int:
        return len(self._receivers)

    def add(self, receiver: Receiver) -> None:
        self._receivers[receiver.id] = receiver

    def remove(self, receiver: Receiver) -> None:
        self._receivers.pop(receiver.id, None)

    def _on_opened(self, link: Link, message: Opened, body: Body) -> None:
        if (receiver := self._receivers.get(message.session)) is not None:
            receiver.on_opened(link, message)

    def _on_refuse(self, link: Link, message: Refuse, body: Body) -> None:
        if (receiver := self._receivers.get(message.session)) is not None:
            receiver.on_refuse(link, message)

    def _on_result(self, link: Link, message: Result, body: Body) -> None:
        if (receiver := self._receivers.get(message.session)) is not None:
            receiver.on_result(link, message)

    def _on_failure(self, link: Link, message: Failure, body: Body) -> None:
        if message.session is not None and (receiver := self._receivers.get(message.session)) is not None:
            receiver.on_failure(link, message)

    def _on_lost(self, link: Link, reason: NetError) -> None:
        for receiver in list(self._receivers.values()):
            receiver.on_lost(link, reason)
