"""The synthesisers' shared libraries, or an error that says what to install."""

from __future__ import annotations

import ctypes
import importlib
import zlib
from pathlib import Path
from typing import Any

from personaplex.errors import SynthesisError

FLITE_PACKAGES = "libflite1"
ESPEAK_PACKAGES = "libespeak-ng1 espeak-ng-data"


def load(name: str, packages: str, mode: int = ctypes.DEFAULT_MODE) -> ctypes.CDLL:
    """Load the shared library `name`. Raises SynthesisError naming the Debian `packages` when it is not there."""
    try:
        return ctypes.CDLL(name, mode)
    except OSError as error:
        raise SynthesisError(
            f"the speech synthesiser's library {name} cannot be loaded ({error}); "
            f"install it (apt-get install {packages}), or name its folder in LD_LIBRARY_PATH"
        ) from error


def load_espeak(system: str = "libespeak-ng.so.1") -> tuple[ctypes.CDLL, str | None]:
    """The system's espeak-ng, or else that of the espeakng-loader package, with the folder of its data.

    Raises SynthesisError saying what to install.
    """
    try:
        return load(system, ESPEAK_PACKAGES), None
    except SynthesisError as absent:
        try:
            loader: Any = importlib.import_module("espeakng_loader")
            return ctypes.CDLL(loader.get_library_path()), str(Path(loader.get_data_path()).parent)
        except (ImportError, OSError) as error:
            raise SynthesisError(f"{absent}, or pip install 'personaplex-mlx[espeak]'") from error


def begin_noise(text: bytes) -> None:
    """Begin the C library's random numbers anew for a text: synthesisers draw the noise of breath from them."""
    ctypes.CDLL(None).srand(zlib.crc32(text))
