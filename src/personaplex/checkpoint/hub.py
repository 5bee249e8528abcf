"""From the name of a model to a folder on this machine: in this package, or through the Hugging Face cache."""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from fnmatch import fnmatch
from importlib.resources import files as package_files
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from personaplex.errors import CheckpointError

REVISIONS = {"nvidia/personaplex-7b-v1": "fdaf4090a61cb315c138a1faee287ffd6c716309"}
"""Commits that were checked; another repository is taken at its main branch."""

BUNDLED = "nano"
"""The model that comes with the package; a folder of that name is `./nano`."""
BUNDLED_FILES = ("config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model", "voices")

VOICE_FILES = ("config.json", "voices.tgz", "voices/*")
CODEC_FILES = ("config.json", "tokenizer-*.safetensors", "mimi*.safetensors")
LM_FILES = ("config.json", "model.safetensors")
ALL_FILES = (*VOICE_FILES, *CODEC_FILES, *LM_FILES, "*.model")


def resolve(path_or_repo: str | Path, files: Sequence[str] = ALL_FILES) -> Path:
    """The folder of a model: "nano", a folder, or a Hub repository `owner/name`.

    nano lies in the package; a folder is taken as it is; of a repository, `files` are downloaded into the Hugging Face
    cache. Raises CheckpointError when there is no such folder or repository, or its licence was not accepted.
    """
    if path_or_repo == BUNDLED:
        return bundled(files)
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; --model takes the folder that holds the model's files")
    repo = str(path_or_repo)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", repo):
        raise CheckpointError(
            f"the model folder {repo} does not exist (nor is it {BUNDLED}, nor a Hub repository, owner/name)"
        )
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # type: ignore[no-untyped-call] # its retries are no news; the error below is
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    try:
        cached_only = not _reachable(constants.ENDPOINT, offline=constants.HF_HUB_OFFLINE)
        return Path(
            snapshot_download(
                repo, revision=REVISIONS.get(repo), allow_patterns=list(files), local_files_only=cached_only
            )
        )
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo} is gated: accept its licence at https://huggingface.co/{repo}, then run `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(f"there is no folder and no Hub repository called {repo}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        # huggingface_hub's other failures (offline, time-outs, a cache without the files) are OSErrors or ValueErrors.
        raise CheckpointError(
            f"{repo} is no folder here and could not be fetched from the Hub ({_short(error)}); "
            f"check the network, or name a model folder"
        ) from error


def bundled(files: Sequence[str] = ALL_FILES) -> Path:
    """The folder of nano inside the installed package; raises CheckpointError naming which of `files` it lacks."""
    folder = Path(str(package_files("personaplex"))) / BUNDLED
    needed = [name for name in BUNDLED_FILES if any(fnmatch(name, f.removesuffix("/*")) for f in files)]
    if missing := [name for name in needed if not (folder / name).exists()]:
        raise CheckpointError(
            f"the bundled model {BUNDLED} is not complete: {folder} holds no {missing[0]}; docs/nano.md says what of "
            "it this version has: install the package again if it should be there, or name another model"
        )
    return folder


def _reachable(endpoint: str, *, offline: bool) -> bool:
    """Whether the Hub answers at all: without a network its client tries for half a minute before it says so."""
    if offline:
        return False
    if getproxies():
        return True
    url = urlsplit(endpoint)
    try:
        socket.create_connection((url.hostname or "", url.port or (80 if url.scheme == "http" else 443)), 5).close()
    except OSError:
        return False
    return True


def _short(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
