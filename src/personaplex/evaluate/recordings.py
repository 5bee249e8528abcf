"""Which recordings somebody means: files as they are named, and of folders all that look like sound."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from personaplex.audio import as_chunk, read_audio
from personaplex.errors import AudioError

SUFFIXES = frozenset(
    ".wav .w64 .aif .aiff .au .caf .flac .mp3 .aac .ogg .oga .opus .mov .mp4 .m4a .3gp .mkv .mka .webm .amr".split()
)
"""What a recording in a folder is recognised by; a file that is named itself may be called anything."""


class Recording(NamedTuple):
    """Something to measure with: a file, or samples [S] at 24 kHz, and what they are called in a result."""

    name: str
    sound: Path | np.ndarray

    def read(self) -> np.ndarray:
        """float32 [S] at 24 kHz. Raises AudioError for a file that cannot be read, or is beyond all loudness."""
        if isinstance(self.sound, np.ndarray):
            return self.sound
        pcm = read_audio(self.sound)
        try:
            return as_chunk(pcm)
        except AudioError as error:
            raise AudioError(f"{self.name}: {error}") from error


def find_recordings(paths: Sequence[Path]) -> list[Recording]:
    """The files among `paths`, and the recordings anywhere below the folders, sorted, each once; hidden ones never.

    Raises AudioError for a path that does not exist, and where there is no recording at all.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES and p.is_file())
            found |= {p: None for p in inside if not any(part[0] == "." for part in p.relative_to(path).parts)}
        elif path.exists():
            found[path] = None
        else:
            raise AudioError(f"{path} does not exist; name recordings, or folders of them")
    if not found:
        where = ", ".join(map(str, paths)) or "nothing"
        raise AudioError(f"no recordings in {where}; expected .wav, .flac, .mp3 and the like, or name each file")
    return [Recording(str(path), path) for path in found]
