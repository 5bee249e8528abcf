"""The voice prompts of a model folder, and voices in files of their own.

`voices.tgz` is read where it lies, member by member; nothing is unpacked to disk, so nothing in it can write anywhere.
"""

from __future__ import annotations

import tarfile
import zlib
from pathlib import Path, PurePosixPath

import mlx.core as mx
import numpy as np

from personaplex.checkpoint.pickles import read_tensors
from personaplex.checkpoint.tensors import TensorFile
from personaplex.errors import CheckpointError, PersonaError
from personaplex.files import whole_file
from personaplex.voice import Voice

SUFFIXES = (".safetensors", ".pt")
_LARGEST_VOICE = 1 << 26


class VoiceShelf:
    """The voices of one model folder: `voices/` if it is there, otherwise `voices.tgz`."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._archive = folder / "voices", folder / "voices.tgz"

    def names(self) -> list[str]:
        """Names of all voices, sorted. Raises CheckpointError for an archive that is damaged or unsafe."""
        if self._folder.is_dir():
            return sorted({path.stem for path in self._folder.iterdir() if path.suffix in SUFFIXES and path.is_file()})
        if self._archive.is_file():
            return sorted(self._members())
        return []

    def load(self, name: str) -> Voice:
        """The voice called `name`. Raises PersonaError when there is none, CheckpointError when its file is bad."""
        stem = name.removesuffix(".pt").removesuffix(".safetensors")
        known = self.names()
        if stem not in known:
            raise PersonaError(
                f"unknown voice {name!r}; "
                + (f"this model has {', '.join(known)}" if known else "this model has none")
                + "; a .pt, .safetensors or audio file works too"
            )
        if self._folder.is_dir():
            return voice_from_file(next(p for s in SUFFIXES if (p := self._folder / f"{stem}{s}").is_file()))
        member = self._members()[stem]
        return _voice(stem, read_tensors(self._read(member), f"{self._archive}: {member.name}"))

    def _members(self) -> dict[str, tarfile.TarInfo]:
        try:
            with tarfile.open(self._archive, "r:gz") as archive:
                members = archive.getmembers()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise CheckpointError(f"{self._archive} is not a readable .tgz archive: {error}") from error
        for member in members:
            path = PurePosixPath(member.name)
            if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
                raise CheckpointError(
                    f"{self._archive} holds {member.name!r}, which is no plain file below its folder; it was not used"
                )
        voices = [m for m in members if m.isfile() and PurePosixPath(m.name).suffix == ".pt"]
        return {PurePosixPath(m.name).stem: m for m in voices}

    def _read(self, member: tarfile.TarInfo) -> bytes:
        if member.size > _LARGEST_VOICE:
            raise CheckpointError(f"{self._archive}: {member.name} is {member.size} bytes, too many for a voice")
        try:
            with tarfile.open(self._archive, "r:gz") as archive:
                file = archive.extractfile(member)
                assert file is not None
                return file.read()
        except (tarfile.TarError, OSError, EOFError, zlib.error) as error:
            raise CheckpointError(f"{self._archive} is damaged: {error}") from error


def voice_from_file(path: Path, codec: str | None = None) -> Voice:
    """A voice from a `.pt`, or from a safetensors file with `embeddings` and `cache`, or with `codes` [1, 8, F].

    Raises CheckpointError or PersonaError naming the file; the latter also for one that says it holds codes of another
    codec than `codec` (its fingerprint).
    """
    if path.suffix == ".pt":
        try:
            return _voice(path.stem, read_tensors(path.read_bytes(), str(path)))
        except OSError as error:
            raise PersonaError(f"voice {path} cannot be read: {error.strerror}") from error
    if not path.is_file():
        raise PersonaError(f"voice {path} does not exist")
    file = TensorFile(path)
    if codec is not None and file.metadata.get("codec", codec) != codec:
        raise PersonaError(
            f"voice {path} was made with the codec of {file.metadata.get('model', 'another model')}; "
            "make it again with this model (`personaplex voices add`)"
        )
    return _voice(path.stem, {name: file.take(name) for name in file.entries}, str(path))


def _voice(name: str, tensors: dict[str, mx.array], where: str | None = None) -> Voice:
    where = where or f"voice {name}"
    if set(tensors) == {"codes"}:
        codes = tensors["codes"]
        if codes.ndim == 2:
            codes = codes[None]
        if codes.ndim != 3 or codes.shape[0] != 1:
            raise PersonaError(f"{where}: expected codes [1, 8, frames], found {list(codes.shape)}")
        return Voice(name, codes=_whole_numbers(codes[0], 0, f"{where}: codes").T)
    if set(tensors) != {"embeddings", "cache"}:
        raise PersonaError(f"{where}: expected tensors 'embeddings' and 'cache', or 'codes'; found {sorted(tensors)}")
    embeddings, cache = tensors["embeddings"], tensors["cache"]
    if embeddings.ndim != 4 or embeddings.shape[1:3] != (1, 1) or cache.ndim != 3 or cache.shape[0] != 1:
        raise PersonaError(
            f"{where}: expected embeddings [frames, 1, 1, dim] and cache [1, 17, 4], found "
            f"{list(embeddings.shape)} and {list(cache.shape)}"
        )
    if not mx.issubdtype(embeddings.dtype, mx.floating) or not bool(mx.isfinite(embeddings).all().item()):
        raise PersonaError(f"{where}: the embeddings are not all finite numbers")
    # A ring also holds marks below 0 for what was not said yet.
    return Voice(name, embeddings=embeddings[:, 0, 0], ring=_whole_numbers(cache[0], -(2**31), f"{where}: cache"))


def _whole_numbers(array: mx.array, least: int, what: str) -> np.ndarray:
    """`array` as int32, refused where that would change a value."""
    values = np.array(array if mx.issubdtype(array.dtype, mx.integer) else array.astype(mx.float32))
    if not (np.isfinite(values) & (values == np.floor(values))).all():
        raise PersonaError(f"{what} hold values that are not whole numbers")
    if not ((values >= least) & (values < 2**31)).all():
        raise PersonaError(f"{what} hold values out of range")
    return values.astype(np.int32)


def save_voice(path: Path, voice: Voice) -> None:
    """Write a voice as safetensors, in the form that it has. Raises OutputError."""
    if voice.codes is not None:
        tensors = {"codes": mx.array(voice.codes.T[None])}
    else:
        assert voice.embeddings is not None and voice.ring is not None
        tensors = {"embeddings": voice.embeddings[:, None, None], "cache": mx.array(voice.ring[None])}
    with whole_file(path) as temporary:
        mx.save_safetensors(str(temporary), tensors)
