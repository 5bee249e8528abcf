"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from personaplex.errors import OutputError

_reading_umask = threading.Lock()


def _umask() -> int:
    # There is no way to read it but to set it; two threads that do so at once could leave it set.
    with _reading_umask:
        umask = os.umask(0)
        os.umask(umask)
    return umask


def cache_folder() -> Path:
    """Where what can be made again is kept: PERSONAPLEX_CACHE, or personaplex below XDG_CACHE_HOME (~/.cache).

    Raises RuntimeError where none of them is set and there is no home.
    """
    if chosen := os.environ.get("PERSONAPLEX_CACHE"):
        return Path(chosen).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "personaplex"


def check_writable(path: Path) -> None:
    """Raise OutputError now if `path` could not be written later: before minutes of work, not after."""
    folder = path.parent
    if path.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: the folder {folder} does not exist; create it or choose another")
    try:
        handle, probe = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; choose another place") from error
    os.close(handle)
    os.unlink(probe)


def make_folder(path: Path, option: str) -> None:
    """Make a folder, and those it is in, if they are not there. Raises OutputError, which names the `option`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OutputError(f"{option} {path}: that, or a part of it, is a file; name a folder") from error
    except OSError as error:
        raise OutputError(f"{option} {path} cannot be made: {error.strerror}; choose another place") from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` if the block ends well, remove it if not.

    The temporary name keeps the suffix, because several writers choose their format by it.
    Raises OutputError when the place cannot be written.
    """
    check_writable(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o666 & ~_umask())  # mkstemp makes private files; a result is an ordinary one
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # MLX's writers raise the second
        raise OutputError(f"cannot write {path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
