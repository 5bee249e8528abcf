"""A repository on the Hugging Face Hub: downloaded once into the standard cache, and checked then."""

from __future__ import annotations

import errno
import hashlib
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from personaplex.checkpoint.layout import CONFIG_FILE, LM_FILE, check_kind, recorded
from personaplex.checkpoint.sources import SOURCES, KnownFile, Source, what_works
from personaplex.config import read_json
from personaplex.errors import CheckpointError

_MIMI_ALONE = (CONFIG_FILE, LM_FILE)
"""What a repository of Mimi alone holds, in the layout of Hugging Face's `MimiModel`."""

_CHUNK = 1 << 24
_LONG_TO_READ = 1 << 28
"""Files from this size on are checked under a progress bar."""


def licence_page(repo: str) -> str:
    """Where the licence of a gated repository is accepted."""
    from huggingface_hub import constants

    return f"{constants.ENDPOINT.rstrip('/')}/{repo}"


def reachable(endpoint: str) -> bool:
    """Whether the Hub answers at all: without a network its client tries for half a minute before it says so."""
    if getproxies():
        return True
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 5).close()
    except OSError:
        return False
    return True


class Repository:
    """The repository `repo`; what a person should know meanwhile goes to `say`."""

    def __init__(self, repo: str, say: Callable[[str], None]) -> None:
        from huggingface_hub import constants
        from huggingface_hub.utils import logging as hub_logging

        hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its retries are no news; errors say enough
        self.repo, self.say = repo, say
        self.source: Source | None = SOURCES.get(repo)
        self.offline = bool(constants.HF_HUB_OFFLINE)
        self.cache, self.endpoint = Path(constants.HF_HUB_CACHE), constants.ENDPOINT
        self._answers = False

    def folder(self, files: Sequence[str]) -> Path:
        """The snapshot that holds `files`, downloaded if need be, and checked. Raises CheckpointError."""
        if self.source and self.source.kind == "mimi":
            files = self._of_mimi_alone(files)
        known = self._known(files)
        found, before = self._complete(known), {name for name in known if self._cached(name)}
        if found is None:
            found = self._fetch(files, known)
        told = recorded(found) if self.source is None else {}
        told = {name: about for name, about in told.items() if any(fnmatch(name, pattern) for pattern in files)}
        self._check(found, known | told, fresh=set(known) - before)
        return found

    def here(self) -> Path | None:
        """The newest snapshot that is on this machine, complete or not; None when there is none."""
        try:
            return self._snapshot([], local=True)
        except (OSError, ValueError):
            found = sorted((self._storage / "snapshots").glob("*/"), key=lambda path: path.stat().st_mtime)
            return found[-1] if found else None

    def _of_mimi_alone(self, files: Sequence[str]) -> Sequence[str]:
        if any(fnmatch(LM_FILE, pattern) for pattern in files):
            raise CheckpointError(
                f"{self.repo} holds Mimi alone, which `personaplex codec` takes; to talk, a language model is needed: "
                + what_works()
            )
        return _MIMI_ALONE

    def _known(self, files: Sequence[str]) -> dict[str, KnownFile]:
        every = self.source.files if self.source else {}
        return {name: about for name, about in every.items() if any(fnmatch(name, pattern) for pattern in files)}

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        revision = self.source.revision if self.source else None
        found = try_to_load_from_cache(self.repo, name, cache_dir=self.cache, revision=revision)
        return Path(found) if isinstance(found, str) else None

    def _complete(self, known: Mapping[str, KnownFile]) -> Path | None:
        """The snapshot, if it is pinned and all of it is here already: then nothing has to be asked of anybody."""
        if not known or self.source is None or self.source.revision is None:
            return None
        found = [self._cached(name) for name in known]
        return found[0].parent if found[0] and all(found) else None

    def _fetch(self, files: Sequence[str], known: Collection[str]) -> Path:
        with self._in_our_words():
            self._answers = not self.offline and reachable(self.endpoint)
            if not self._answers:
                return self._snapshot(files, local=True)
            if known or self.source is None or not (self._storage / "snapshots").is_dir():
                files = self._first_of(files)
            return self._snapshot(files, local=False)

    def _first_of(self, files: Sequence[str]) -> Sequence[str]:
        """Fetch the smallest file before the largest: it shows whether we may, and what kind of model it is."""
        new = not (self._storage / "snapshots").is_dir()
        about = read_json(self._snapshot([CONFIG_FILE], local=False) / CONFIG_FILE)
        if self.source is None:
            check_kind(about, self.repo)
            if about.get("model_type") == "mimi":
                files = self._of_mimi_alone(files)
        if new or self.source is not None:
            self.say(self._terms())
        return files

    def _snapshot(self, files: Sequence[str], *, local: bool) -> Path:
        from huggingface_hub import snapshot_download

        revision = self.source.revision if self.source else None
        found = snapshot_download(
            self.repo,
            revision=revision,
            cache_dir=self.cache,
            endpoint=self.endpoint,
            allow_patterns=list(files),
            local_files_only=local,
        )
        if not local:
            # Where no file was asked for that is there, no folder is made (a Moshi has no voices).
            Path(found).mkdir(parents=True, exist_ok=True)
        return Path(found)

    def _terms(self) -> str:
        page = licence_page(self.repo)
        if self.source is None:
            return f"{self.repo}: its licence is on {page}"
        return f"{self.repo}: licence {self.source.licence.name} ({self.source.licence.url}); {page}"

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

        try:
            yield
        except CheckpointError:
            raise
        except RevisionNotFoundError as error:
            raise CheckpointError(
                f"{self.repo} has no revision {self.source and self.source.revision} any more; a newer version of this "
                "program may know another one"
            ) from error
        except Exception as error:
            # huggingface_hub lets through what its HTTP client and its transfer library raise, which differs from
            # release to release; beside OSErrors and ValueErrors of its own.
            status = status_of(error)
            gated = type(error).__name__ == "GatedRepoError" or bool(self.source and self.source.gated)
            if status in (401, 403) and (gated or not isinstance(error, RepositoryNotFoundError)):
                raise CheckpointError(self._refused()) from error
            if isinstance(error, RepositoryNotFoundError):
                raise CheckpointError(
                    f"there is no folder and no Hub repository called {self.repo}; "
                    "if it is private, run `hf auth login`"
                ) from error
            if _number(error) == errno.ENOSPC:
                raise CheckpointError(
                    f"the disk is full: {self.repo} does not fit into {self.cache}; make room, or let HF_HOME name "
                    "a folder on another disk"
                ) from error
            if not self._answers:
                why, mend = (
                    ("HF_HUB_OFFLINE is set", "unset it once")
                    if self.offline
                    else (f"{self.endpoint} does not answer", "check the network")
                )
                raise CheckpointError(
                    f"{self.repo} could not be fetched from the Hub: {why}, and what is needed of it is not in "
                    f"{self.cache}; {mend}, or name a model folder"
                ) from error
            raise CheckpointError(
                f"{self.repo} is no folder here and could not be fetched from the Hub ({_short(error)}); "
                f"check the network, or name a model folder"
            ) from error

    def _refused(self) -> str:
        from huggingface_hub import get_token

        page = licence_page(self.repo)
        if get_token() is None:
            return f"{self.repo} is gated: accept its licence at {page}, then run `hf auth login`"
        return (
            f"{self.repo} is gated, and the token in use may not read it: accept its licence at {page} with the "
            "token's account, then run `hf auth login` with a token that may read gated repositories"
        )

    def _check(self, folder: Path, known: Mapping[str, KnownFile], fresh: set[str]) -> None:
        """Raise CheckpointError for a file that is not the one that is known.

        What was found right is noted beside it in the cache, so that its gigabytes are read once and not at every
        start; in a cache that cannot be written, what was there before is only measured.
        """
        notes = self._storage / "personaplex-checked"
        for name, about in known.items():
            path = folder / name
            if not path.is_file():
                wish = "unset HF_HUB_OFFLINE once" if self.offline else "run this again with a network"
                raise CheckpointError(f"{self.repo} is here without its {name}: {wish} to download it")
            real = path.resolve()
            found, noted = f"{real.stat().st_size} {real.stat().st_mtime_ns}", notes / f"{about.sha256}"
            if about.sha256 and noted.is_file() and noted.read_text(encoding="ascii") == found:
                continue
            if real.stat().st_size != about.n_bytes:
                raise self._wrong(name, real, f"{real.stat().st_size} bytes long, not {about.n_bytes}")
            if about.sha256 is None or not (name in fresh or _can_write(notes)):
                continue
            if (digest := sha256_of(real, name)) != about.sha256:
                raise self._wrong(name, real, f"another file: its SHA-256 is {digest}, not {about.sha256}")
            with suppress(OSError):
                notes.mkdir(parents=True, exist_ok=True)
                noted.write_text(found, encoding="ascii")

    @property
    def _storage(self) -> Path:
        return self.cache / f"models--{self.repo.replace('/', '--')}"

    def _wrong(self, name: str, real: Path, how: str) -> CheckpointError:
        return CheckpointError(
            f"{name} of {self.repo} is {how}; it was not used: delete {real} and run this again to download it anew"
        )


def sha256_of(path: Path, name: str) -> str:
    """The SHA-256 of the file at `path`, under a progress bar that calls it `name` when that takes a while."""
    from huggingface_hub.utils.tqdm import tqdm

    size, digest = path.stat().st_size, hashlib.sha256()
    # None shows it on a terminal only, as the downloads before it.
    hidden = True if size < _LONG_TO_READ else None
    bar = tqdm(total=size, unit="B", unit_scale=True, desc=f"checking {name}", disable=hidden)  # type: ignore[no-untyped-call]
    with path.open("rb") as file, bar:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    return digest.hexdigest()


def _can_write(folder: Path) -> bool:
    return os.access(folder if folder.is_dir() else folder.parent, os.W_OK)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def status_of(error: Exception) -> int | None:
    """The HTTP status behind an error of huggingface_hub's, which wraps some of them."""
    responses = (getattr(cause, "response", None) for cause in _causes(error))
    return next((int(response.status_code) for response in responses if response is not None), None)


def _number(error: Exception) -> int | None:
    return next((cause.errno for cause in _causes(error) if isinstance(cause, OSError) and cause.errno), None)


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
