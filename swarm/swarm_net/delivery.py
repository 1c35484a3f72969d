"""From a frame's bytes to a handler: what every link does with what it receives, whatever carried it.

Owns the answers to what cannot be handled. A header that is no message: the link ends, since its peer is broken. A
message that demands unknown fields (`must`): a Failure goes back and the link stays. A handler that raises: a bug of
ours; it is logged and the link ends, so that both ends notice. Called by `direct.py` and `memory.py`.
"""

import contextlib
import logging

import msgspec

from swarm_net.errors import LinkLost, Malformed, NotUnderstood
from swarm_net.links import Body, Link, LinkHandler
from swarm_net.messages import Failure, Natural, SessionId, decode

_log = logging.getLogger(__name__)


class _Subject(msgspec.Struct):
    """What a message is about, read out of one that as a whole is not understood."""

    session: SessionId | None = None
    request: Natural | None = None


def deliver(link: Link, handler: LinkHandler, header: Body, body: Body) -> None:
    """Decode one frame and hand it over; raises nothing."""
    try:
        message = decode(header)
    except NotUnderstood as error:
        with contextlib.suppress(LinkLost):
            link.send(_refusal(header, error))
        return
    except Malformed as error:
        _log.warning("link closed peer=%s reason=%.200s", link.peer, error)
        link.close(str(error))
        return
    try:
        handler.on_message(link, message, body)
    except Exception:
        _log.exception("handler failed peer=%s message=%s", link.peer, type(message).__name__)
        link.close("a message could not be handled")


def _refusal(header: Body, error: NotUnderstood) -> Failure:
    try:
        subject = msgspec.msgpack.decode(header, type=_Subject)
    except msgspec.DecodeError:
        subject = _Subject()
    return Failure(
        session=subject.session,
        request=subject.request,
        code="not_understood",
        retry="elsewhere",
        text=str(error)[:2048],
        remedy=error.remedy(),
    )
