"""A model named by a directory: which revision of the swarm it is.

Owns that question. With weights, the directory's own manifest says it, exactly. Without, the model served whose
configuration and tokenizer are the same ones is meant; if there are several, the caller has to say which. Called by
`model.py`.
"""

import asyncio
from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

from swarm_client.daemon_executor import DaemonExecutor
from swarm_client.errors import BadModelDirectory
from swarm_client.world import World
from swarm_net.directory import RemoteDirectory
from swarm_net.endpoint import Endpoint
from swarm_net.errors import AmbiguousModel, NetError, NoSuchModel
from swarm_net.manifest import MAX_FILE_BYTES, manifest_of
from swarm_net.snapshot import Snapshot

MANIFESTS_AT_ONCE = 16
_IDENTIFYING = ("config.json", "tokenizer.json")


def local_directory(model: str) -> Path | None:
    """Return the directory that a model is named by; None for a name or a revision. Raises BadModelDirectory."""
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if model.startswith(("/", "./", "../", "~")):
        raise BadModelDirectory(model, "there is no such directory")
    return None


async def revision_of(directory: Path, endpoint: Endpoint, bootstrap: Sequence[str], world: World) -> str:
    """Return the revision that a directory stands for.

    Raises BadModelDirectory, BadManifest for broken weights, NoSuchModel, AmbiguousModel, and what dialing raises.
    """
    digests = await asyncio.to_thread(_digests, directory)
    if await asyncio.to_thread(_has_weights, directory):
        reader = DaemonExecutor("manifest")  # it may be long: there may be many files
        try:
            return (await asyncio.get_running_loop().run_in_executor(reader, manifest_of, directory)).revision
        finally:
            reader.shutdown(wait=False)
    summaries = await RemoteDirectory(endpoint, bootstrap).models()
    served = {summary.model.revision: summary.model for summary in summaries}
    turns = asyncio.Semaphore(MANIFESTS_AT_ONCE)

    async def has_same_files(revision: str) -> bool:
        """Tell whether a revision has these files; not, if nobody gives its manifest."""
        snapshot = Snapshot(endpoint, clock=world.clock, bootstrap=bootstrap, model=revision, rng=world.rng)
        try:
            async with turns:
                await snapshot.connect()
            return all(snapshot.manifest.files.get(name) == digest for name, digest in digests.items())
        except NetError:
            return False
        finally:
            await snapshot.close()

    async with asyncio.TaskGroup() as tasks:
        asked = {revision: tasks.create_task(has_same_files(revision)) for revision in served}
    revisions = tuple(revision for revision, task in asked.items() if task.result())
    if not revisions:
        raise NoSuchModel(model=str(directory), known=tuple(str(model) for model in served.values()))
    if len(revisions) > 1:
        raise AmbiguousModel(model=str(directory), revisions=revisions)
    return revisions[0]


def _digests(directory: Path) -> dict[str, str]:
    if not (directory / "config.json").is_file():
        raise BadModelDirectory(str(directory), "no config.json there")
    digests = {}
    for name in _IDENTIFYING:
        try:
            with (directory / name).open("rb") as file:
                digests[name] = sha256(file.read(MAX_FILE_BYTES)).hexdigest()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise BadModelDirectory(str(directory), f"{name} cannot be read: {error.strerror}") from error
    return digests


def _has_weights(directory: Path) -> bool:
    return (directory / "model.safetensors.index.json").is_file() or any(directory.glob("*.safetensors"))
