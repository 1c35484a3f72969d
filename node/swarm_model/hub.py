"""Files of one commit of a repository on the Hugging Face hub: what is on this disk, and getting what is not.

Owns talking to the hub, and the download of weights, which goes on where it was interrupted, in this process or an
earlier one: huggingface_hub begins a file anew. Files end in that library's cache, where other programs find them. A
token comes from HF_TOKEN or `hf auth login`, through the library, and is sent to the hub alone. Foreign errors become
ours here. Called by checkpoint.py, in a thread that may block.
"""

import hashlib
import re
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock
from huggingface_hub import get_hf_file_metadata, get_session, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError: of httpx or httpx2, by release
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

from swarm_model.errors import (
    AccessDenied,
    CheckpointBroken,
    CheckpointNotFound,
    DownloadInterrupted,
    HubUnreachable,
    ModelError,
)
from swarm_model.tensor_files import HEADER_LENGTH_BYTES, TensorInfo, header_bytes, tensor_infos

SMALL_FILES: Final = ["*.json", "*.model", "*.txt", "*.jinja"]  # configuration, tokenizer, index; never weights
FIRST_BYTES: Final = 100_000  # of a safetensors file: nearly every header fits, so that one request is enough
PIECE_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 20.0
RETRIES: Final = 5  # without a byte received in between
RETRY_PAUSE_S: Final = 1.0
REQUESTS_AT_ONCE: Final = 8
SHA256: Final = re.compile(r"[0-9a-f]{64}")

OnBytes = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """What the hub says of a file; `etag` is the SHA-256 of files that are stored as large ones."""

    name: str
    etag: str
    size: int


class HubFiles:
    """The files of one commit; make it with `open`."""

    def __init__(self, repo: str, directory: Path, cache_dir: Path | None, endpoint: str | None) -> None:
        self.repo = repo
        self.directory = directory  # of the snapshot: <cache>/models--<owner>--<name>/snapshots/<commit>
        self.commit = directory.name
        self._cache_dir, self._endpoint = cache_dir, endpoint
        self._storage = directory.parent.parent

    @classmethod
    def open(cls, repo: str, revision: str | None, cache_dir: Path | None, endpoint: str | None) -> "HubFiles":
        """Pin a revision's commit and fetch its small files.

        Raises CheckpointNotFound, AccessDenied, HubUnreachable.
        """
        with _asking(repo, revision):
            snapshot = snapshot_download(
                repo, revision=revision, cache_dir=cache_dir, endpoint=endpoint, allow_patterns=SMALL_FILES
            )
        return cls(repo, Path(snapshot), cache_dir, endpoint)

    def tensors(self, files: Iterable[str]) -> dict[str, dict[str, TensorInfo]]:
        """Read the headers of safetensors files that are not here, several at a time; a header is asked for once."""
        names = list(files)
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return dict(zip(names, pool.map(self._tensors, names), strict=True))

    def missing_bytes(self, files: Iterable[str]) -> int:
        """Add up what of these files is still to come, without what an interrupted download left."""
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            return sum(remote.size - self._bytes_here(remote) for remote in pool.map(self._ask, self._missing(files)))

    def fetch(self, files: Iterable[str], on_bytes: OnBytes) -> None:
        """Download what is missing; `on_bytes` hears of every piece, those of an earlier try too.

        Raises DownloadInterrupted, CheckpointBroken, CheckpointNotFound, AccessDenied, HubUnreachable.
        """
        for name in self._missing(files):
            remote = self._ask(name)
            lock = self._storage.parent / ".locks" / self._storage.name / f"{remote.etag}.lock"  # the library's own
            lock.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                if not self._blob(remote).exists():
                    self._download(remote, on_bytes)
            with _asking(self.repo, self.commit):  # it finds the file in its cache, and links it into the snapshot
                hf_hub_download(
                    self.repo, name, revision=self.commit, cache_dir=self._cache_dir, endpoint=self._endpoint
                )

    def _missing(self, files: Iterable[str]) -> list[str]:
        return [name for name in sorted(set(files)) if not (self.directory / name).is_file()]

    def _blob(self, remote: RemoteFile) -> Path:
        return self._storage / "blobs" / remote.etag

    def _part(self, remote: RemoteFile) -> Path:
        return self._storage / "blobs" / f"{remote.etag}.incomplete"

    def _bytes_here(self, remote: RemoteFile) -> int:
        if self._blob(remote).exists():
            return remote.size
        part = self._part(remote)
        return min(part.stat().st_size, remote.size) if part.exists() else 0

    def _url(self, name: str) -> str:
        return hf_hub_url(self.repo, name, revision=self.commit, endpoint=self._endpoint)

    def _ask(self, name: str) -> RemoteFile:
        with _asking(self.repo, self.commit):
            found = get_hf_file_metadata(self._url(name), headers=build_hf_headers(), endpoint=self._endpoint)
        if found.size is None or found.etag is None or not re.fullmatch(r"[\w.-]+", found.etag):
            raise HubUnreachable(self.repo, f"it gives no size or no name for the content of {name}")
        return RemoteFile(name, found.etag, found.size)

    def _tensors(self, name: str) -> dict[str, TensorInfo]:
        kept = self._storage / "headers" / self.commit / name
        if kept.is_file():
            return tensor_infos(name, kept.read_bytes())
        with _asking(self.repo, self.commit):
            start = self._read(name, 0, FIRST_BYTES)
            size = HEADER_LENGTH_BYTES + header_bytes(name, start, size=None)
            if size > len(start):
                start += self._read(name, len(start), size)
        infos = tensor_infos(name, start[:size])
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(start[:size])
        return infos

    def _read(self, name: str, start: int, end: int) -> bytes:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity", "Range": f"bytes={start}-{end - 1}"}
        response = get_session().get(self._url(name), headers=headers, timeout=TIMEOUT_S)
        hf_raise_for_status(response)
        content: bytes = response.content
        return content if response.status_code == 206 else content[start:end]

    def _download(self, remote: RemoteFile, on_bytes: OnBytes) -> None:
        part, digest = self._part(remote), hashlib.sha256()
        part.parent.mkdir(parents=True, exist_ok=True)
        done, retries = 0, RETRIES
        with part.open("a+b") as file:
            file.seek(0)
            while piece := file.read(PIECE_BYTES):
                digest.update(piece)
                done += len(piece)
                on_bytes(len(piece))
            while done < remote.size:
                try:
                    for piece in self._stream(remote.name, done):
                        file.write(piece)
                        digest.update(piece)
                        done += len(piece)
                        on_bytes(len(piece))
                        retries = RETRIES
                except HTTPError as error:
                    if isinstance(error, HfHubHTTPError):
                        with _asking(self.repo, self.commit):
                            raise
                    if retries == 0:
                        reason = str(error) or type(error).__name__
                        raise DownloadInterrupted(self.repo, remote.name, done, remote.size, reason) from error
                    retries -= 1
                    time.sleep(RETRY_PAUSE_S)
        wrong = SHA256.fullmatch(remote.etag) and digest.hexdigest() != remote.etag
        if wrong or done != remote.size:
            part.unlink()
            raise CheckpointBroken(remote.name, f"what was downloaded is not what {self.repo} promises")
        part.replace(self._blob(remote))

    def _stream(self, name: str, start: int) -> Iterator[bytes]:
        headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        with get_session().stream("GET", self._url(name), headers=headers, timeout=TIMEOUT_S) as response:
            hf_raise_for_status(response)
            skip = start if response.status_code == 200 else 0  # a server that knows no ranges begins anew
            for piece in response.iter_bytes(PIECE_BYTES):
                if wanted := piece[skip:]:
                    yield wanted
                skip = max(0, skip - len(piece))


@contextmanager
def _asking(repo: str, revision: str | None) -> Iterator[None]:
    """Turn whatever the hub, the way to it or the library says into our errors."""
    try:
        yield
    except ModelError:
        raise
    except GatedRepoError as error:
        raise AccessDenied(repo, "its owner wants people to log in and accept terms first") from error
    except RevisionNotFoundError as error:
        raise CheckpointNotFound(repo, f"it has no revision {revision!r}") from error
    except RepositoryNotFoundError as error:
        raise CheckpointNotFound(repo, "no such folder, and no repository on the hub that you may see") from error
    except LocalEntryNotFoundError as error:
        raise HubUnreachable(repo, _reason(error.__cause__ or error)) from error
    except EntryNotFoundError as error:
        raise CheckpointNotFound(repo, _reason(error)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise AccessDenied(
                repo, f"the hub answers {status}: your token is not accepted, or has no access"
            ) from error
        raise HubUnreachable(repo, f"the hub answers {status}") from error
    except OfflineModeIsEnabled as error:
        raise HubUnreachable(repo, "HF_HUB_OFFLINE is set") from error
    except HFValidationError as error:
        raise CheckpointNotFound(repo, _reason(error)) from error
    except HTTPError as error:
        raise HubUnreachable(repo, _reason(error)) from error


def _reason(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
