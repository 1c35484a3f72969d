"""Generate text with a model that lives in a swarm: `RemoteModel`, and `AsyncRemoteModel` for asyncio programs.

    with RemoteModel.connect("demo", bootstrap=["/ip4/127.0.0.1/tcp/4001/p2p/12D3..."]) as model:
        print(model.generate("ROMEO:", max_new_tokens=50).text)

Names are loaded when they are used: importing the package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from swarm_client.blocking import RemoteModel as RemoteModel
    from swarm_client.drafts import Draft as Draft
    from swarm_client.drafts import Drafter as Drafter
    from swarm_client.errors import ClientError as ClientError
    from swarm_client.model import AsyncRemoteModel as AsyncRemoteModel
    from swarm_client.results import Generation as Generation
    from swarm_client.results import Token as Token

_HOMES = {
    "RemoteModel": "swarm_client.blocking",
    "AsyncRemoteModel": "swarm_client.model",
    "ClientError": "swarm_client.errors",
    "Draft": "swarm_client.drafts",
    "Drafter": "swarm_client.drafts",
    "Generation": "swarm_client.results",
    "Token": "swarm_client.results",
}

__all__ = ["AsyncRemoteModel", "ClientError", "Draft", "Drafter", "Generation", "RemoteModel", "Token"]


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)
