"""A model's small files on this machine: fetched once from the swarm, checked, kept in the user's cache.

Owns which files the client needs and where they are kept: `<cache>/<revision>/<name>`, written whole or not at all.
Every file is checked against the manifest, whether it comes from a peer, the cache or a local directory, so none of
them has to be trusted. Called by `model.py`.
"""

import asyncio
import json
import logging
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs

from swarm_client.errors import first_of
from swarm_client.generation_config import SamplingDefaults, read_sampling_defaults
from swarm_net.errors import BadManifest, NetError
from swarm_net.manifest import verify_file
from swarm_net.snapshot import Snapshot

if TYPE_CHECKING:
    from swarm_client.template_process import TemplateProcess
    from swarm_client.tokenizer import Tokenizer

WANTED = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """What the files say; None for what the model does not have."""

    tokenizer: "Tokenizer | None" = None
    chat_template: "TemplateProcess | None" = None
    sampling: SamplingDefaults = field(default_factory=SamplingDefaults)


def default_cache_dir() -> Path:
    """Return where models' files are kept: one folder a revision."""
    return platformdirs.user_cache_path("swarm-inference")


async def load_model_files(snapshot: Snapshot, cache_dir: Path, local_dir: Path | None) -> ModelFiles:
    """Return the model's files, fetching what neither the local directory nor the cache has.

    Raises BadManifest if no node has a file, Malformed for a tokenizer, and BadChat for a template, that is none.
    """
    names = [name for name in WANTED if name in snapshot.manifest.files]
    if not names:
        return ModelFiles()
    folder = cache_dir / snapshot.model.revision
    places = [folder] if local_dir is None else [local_dir, folder]
    found = await asyncio.to_thread(_read_all, names, places, snapshot)
    try:
        async with asyncio.TaskGroup() as tasks:
            fetching = {name: tasks.create_task(snapshot.fetch_file(name)) for name in names if name not in found}
    except* NetError as errors:
        raise first_of(errors) from None
    fetched = {name: task.result() for name, task in fetching.items()}
    return await asyncio.to_thread(_keep_and_open, found | fetched, fetched, folder)


def _read_all(names: list[str], places: list[Path], snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files that are here and are what the manifest says."""
    found: dict[str, bytes] = {}
    for name in names:
        for place in places:
            try:
                content = (place / name).read_bytes()
                verify_file(snapshot.manifest, name, content)
            except (OSError, BadManifest):
                continue
            found[name] = content
            break
    return found


def _keep_and_open(files: dict[str, bytes], new: dict[str, bytes], folder: Path) -> ModelFiles:
    for name, content in new.items():
        try:
            _write(folder, name, content)
        except OSError as error:
            log.warning("file not kept name=%s folder=%s reason=%s", name, folder, error)
    return open_model_files(files)


def open_model_files(files: dict[str, bytes]) -> ModelFiles:
    """Return what checked files say. Raises Malformed, BadChat."""
    from swarm_client.chat_template import find_template, special_tokens
    from swarm_client.template_process import TemplateProcess
    from swarm_client.tokenizer import Tokenizer

    template = find_template(files)
    try:
        generation_config = json.loads(files.get("generation_config.json", b"{}"))
    except (ValueError, RecursionError):
        generation_config = {}
    return ModelFiles(
        tokenizer=Tokenizer(files["tokenizer.json"]) if "tokenizer.json" in files else None,
        chat_template=TemplateProcess(template, special_tokens(files)) if template is not None else None,
        sampling=read_sampling_defaults(generation_config if isinstance(generation_config, dict) else {}),
    )


def _write(folder: Path, name: str, content: bytes) -> None:
    """Write beside the place and move there: another program that starts now sees all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor, draft = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
        os.replace(draft, folder / name)
    except OSError:
        Path(draft).unlink(missing_ok=True)
        raise
