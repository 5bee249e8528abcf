"""From the name of a model to a folder on this machine: in this package, or through the Hugging Face cache."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from importlib.resources import files as package_files
from pathlib import Path

from personaplex.checkpoint.repository import Repository
from personaplex.checkpoint.sources import BUNDLED
from personaplex.errors import CheckpointError

BUNDLED_FILES = ("config.json", "model.safetensors", "mimi.safetensors", "tokenizer.model", "voices")

VOICE_FILES = ("config.json", "voices.tgz", "voices/*")
CODEC_FILES = ("config.json", "tokenizer-*.safetensors", "mimi*.safetensors")
LM_WEIGHTS = ("model*.safetensors", "temporal.safetensors", "depformer.safetensors", "embeddings.safetensors")
LM_FILES = ("config.json", "model.safetensors.index.json", *LM_WEIGHTS)
_REPO = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
ALL_FILES = (*VOICE_FILES, *CODEC_FILES, *LM_FILES, "*.model", "README.md")


def resolve(
    path_or_repo: str | Path, files: Sequence[str] = ALL_FILES, say: Callable[[str], None] | None = None
) -> Path:
    """The folder of a model: "nano", a folder, or a Hub repository `owner/name`.

    nano lies in the package; a folder is taken as it is; of a repository, `files` are downloaded into the Hugging Face
    cache, once: its licence is told to `say` (default: a line on stderr), then progress is shown, then what arrived is
    held against the sizes and SHA-256 that are known. With HF_HUB_OFFLINE nothing is asked of the network. Raises
    CheckpointError when there is no such folder or repository, its licence was not accepted, it is of a kind that
    cannot be read, or a file is not the one that is known.
    """
    if path_or_repo == BUNDLED:
        return bundled(files)
    path = Path(path_or_repo).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise CheckpointError(f"{path} is a file; --model takes the folder that holds the model's files")
    repo = str(path_or_repo)
    if not _REPO.fullmatch(repo):
        raise CheckpointError(
            f"the model folder {repo} does not exist (nor is it {BUNDLED}, nor a Hub repository, owner/name)"
        )
    return Repository(repo, say or _on_stderr).folder(files)


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


def find(path_or_repo: str | Path) -> Path | None:
    """The folder that `resolve` would use, if it is on this machine; nothing is downloaded, nor asked of the network.

    None for a repository of which nothing is here. Raises CheckpointError as `resolve`.
    """
    name = str(path_or_repo)
    if name != BUNDLED and not Path(name).expanduser().exists() and _REPO.fullmatch(name):
        return Repository(name, _on_stderr).here()
    return resolve(path_or_repo)


def _on_stderr(line: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")
