"""What this machine has and lacks: one check after the other, each with a verdict and what mends it.

A check looks and does not repair; it must not fail itself, and none needs another. A warning limits what can be done,
a problem prevents everything.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from personaplex.accelerator import blas, explain
from personaplex.errors import BackendError, DeviceError

Verdict = Literal["ok", "warning", "problem"]

THE_7B = "nvidia/personaplex-7b-v1"
GIB = 2**30

DRIVERS = {"cuda12": 550, "cuda13": 580}
"""The oldest NVIDIA driver for each of MLX's CUDA builds, by its installation page."""


@dataclass(frozen=True)
class Check:
    """What was looked at, what was found, and the command that mends it where something is wrong."""

    name: str
    verdict: Verdict
    found: str
    mend: str | None = None
    exit_code: int = 0


def examine() -> list[Check]:
    """Every check, in the order in which to mend."""
    return [_looked(name, check) for name, check in CHECKS.items()]


def _looked(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except ImportError as error:  # most of this package needs MLX, whose absence is a problem of its own
        return Check(name, "warning", f"it could not be looked at: {explain(error)}", _install(_build()))


def check_mlx() -> Check:
    """Whether MLX is there, has a backend that works, and on what it runs."""
    try:
        import mlx.core as mx

        mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))
    except ImportError as error:
        return Check("mlx", "problem", str(explain(error)), _install(_build()), BackendError.exit_code)
    except RuntimeError as error:
        return Check(
            "mlx", "problem", f"it is installed, and fails: {error}", _install(_build()), BackendError.exit_code
        )
    kind = "GPU" if mx.default_device().type == mx.DeviceType.gpu else "CPU"
    return Check("mlx", "ok", f"{version('mlx')} on the {kind} ({_backend() or 'no backend package'})")


def check_blas() -> Check:
    """Which BLAS multiplies float32 on a CPU."""
    if blas.advice:
        return Check("blas", "warning", "MLX's own, which is slow", blas.advice)
    if os.environ.get("PERSONAPLEX_BLAS") == "none":
        return Check("blas", "warning", "MLX's own, because PERSONAPLEX_BLAS says none", "unset PERSONAPLEX_BLAS")
    return Check("blas", "ok", blas.library or "the system's own, or that of the GPU")


def check_memory() -> Check:
    """How much memory there is, and what of the 7B fits into it."""
    from personaplex.checkpoint.folder import ModelFolder
    from personaplex.checkpoint.hub import bundled
    from personaplex.checkpoint.recipe import quantization
    from personaplex.config import LMConfig, ModelConfig
    from personaplex.runtime.limits import Limits
    from personaplex.runtime.memory import available_bytes, plan

    available = available_bytes()
    if available is None:
        return Check("memory", "ok", "this system does not say how much is free")
    needs = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for bits in ("16", "8", "mixed", "4"):
            config = ModelConfig(quantization=quantization(bits, LMConfig()))
            (folder / "config.json").write_text(config.to_json())
            needs[bits] = plan(ModelFolder(folder), 1, Limits()).total
    small = plan(ModelFolder(bundled(("config.json",))), 1, Limits()).total
    found = f"{available / GIB:.1f} GiB are free"
    if available < small:
        mend = f"close other programs: nano needs {small / GIB:.1f} GiB, and the 7B {needs['16'] / GIB:.1f}"
        return Check("memory", "problem", found, mend, BackendError.exit_code)
    best = next((bits for bits, n_bytes in needs.items() if n_bytes <= available), None)
    if best is None:
        least = min(needs.values()) / GIB
        return Check(
            "memory", "warning", f"{found}; the 7B needs {least:.1f} GiB here", "personaplex talk --model nano"
        )
    takes = f"({needs[best] / GIB:.1f} GiB with one conversation)"
    if best == "16":
        return Check("memory", "ok", f"{found}; the 7B fits {takes}")
    mend = f"personaplex convert {THE_7B} --out personaplex-{best} --bits {best}"
    return Check("memory", "warning", f"{found}; the 7B fits as `--bits {best}` makes it {takes}", mend)


def check_disk() -> Check:
    """Whether the 7B is here, or would fit where Hugging Face's cache lies."""
    from huggingface_hub import constants, try_to_load_from_cache

    from personaplex.checkpoint.sources import SOURCES

    cache, source = Path(constants.HF_HUB_CACHE), SOURCES[THE_7B]
    cached = {name: try_to_load_from_cache(THE_7B, name, cache, source.revision) for name in source.files}
    here = {name for name, path in cached.items() if isinstance(path, str)}
    place = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free, needed = shutil.disk_usage(place).free, sum(f.n_bytes for n, f in source.files.items() if n not in here)
    found = f"{free / GIB:.1f} GiB are free in {cache}; "
    if not needed:
        return Check("disk", "ok", found + "the 7B is there")
    found += f"the 7B takes {needed / GIB:.1f} GiB" + (" more" if here else "")
    if free < needed:
        return Check("disk", "warning", found, "make room, or `export HF_HOME=` a folder on a larger disk")
    return Check("disk", "ok", found)


def check_microphone() -> Check:
    """Whether there is a microphone, and a library to reach it."""
    return _sound_device("microphone")


def check_speaker() -> Check:
    """Whether there is a speaker, and a library to reach it."""
    return _sound_device("speaker")


def _sound_device(what: Literal["microphone", "speaker"]) -> Check:
    from personaplex.live.sound_card import default_device

    try:
        return Check(what, "ok", default_device(what))
    except DeviceError as error:
        if isinstance(error.__cause__, ImportError):
            return Check(what, "warning", "the sounddevice package is not installed", _install("talk"))
        if isinstance(error.__cause__, OSError):
            mend = "apt-get install libportaudio2 (or your system's PortAudio package)"
            return Check(what, "warning", "the PortAudio library was not found", mend)
        return Check(what, "warning", f"no {what} was found", "plug one in, and choose it in the system's settings")


def check_opus() -> Check:
    """Whether the audio library can read and write Opus."""
    from personaplex.audio import opus_codecs

    codecs = opus_codecs()
    if len(codecs) == 2:
        return Check("opus", "ok", " and ".join(codecs))
    return Check("opus", "warning", "PyAV here cannot read and write Opus", "pip install --force-reinstall av")


def check_hub() -> Check:
    """Whether the Hugging Face Hub answers, and lets the 7B be downloaded; asks nobody with HF_HUB_OFFLINE."""
    from huggingface_hub import HfApi, constants, get_token

    from personaplex.checkpoint.repository import licence_page, reachable, status_of

    if constants.HF_HUB_OFFLINE:
        return Check("hub", "ok", f"HF_HUB_OFFLINE is set: nobody is asked, and {constants.HF_HUB_CACHE} is used")
    if not reachable(constants.ENDPOINT):
        mend = "check the network; `export HF_HUB_OFFLINE=1` works with what is here already"
        return Check("hub", "warning", f"{constants.ENDPOINT} does not answer", mend)
    accept = f"accept the licence at {licence_page(THE_7B)}, then run `hf auth login`"
    if (token := get_token()) is None:
        return Check(
            "hub", "warning", f"{constants.ENDPOINT} answers; there is no token, and {THE_7B} is gated", accept
        )
    try:
        HfApi(endpoint=constants.ENDPOINT).auth_check(THE_7B, token=token)
    except Exception as error:  # its HTTP client's own are no OSErrors, and differ from release to release
        if status_of(error) in (401, 403, 404):
            return Check("hub", "warning", f"the token in use may not read {THE_7B}", accept)
        return Check("hub", "warning", f"{constants.ENDPOINT} answers, but not this: {error}", "try again later")
    return Check("hub", "ok", f"{constants.ENDPOINT} answers, and the token in use may read {THE_7B}")


def check_gpu() -> Check:
    """Whether MLX uses the graphics card that is there, and its driver is new enough."""
    if sys.platform == "darwin":
        if platform.machine() == "arm64":
            return Check("gpu", "ok", "Apple silicon; macOS brings its driver")
        return Check("gpu", "warning", "an Intel Mac: MLX has no GPU backend for it")
    if (card := nvidia_card()) is not None:
        return _nvidia(*card)
    if _build() == "cpu":
        return Check("gpu", "ok", "no NVIDIA card (or no driver for one): MLX runs on the CPU")
    mend = f"install NVIDIA's driver {DRIVERS[_build()]} or newer; without a card: {_install('cpu')}"
    return Check("gpu", "warning", f"MLX is the {_build()} build, but no card (or no driver for one) is there", mend)


def _nvidia(name: str, driver: int) -> Check:
    build, suited = _build(), next((b for b in ("cuda13", "cuda12") if driver >= DRIVERS[b]), None)
    found = f"{name}, driver {driver}"
    # Warnings only: with NVIDIA's compatibility package an older driver will do, and whether MLX runs is tried above.
    if suited is None:
        mend = f"install NVIDIA's driver {DRIVERS['cuda12']} or newer"
        return Check("gpu", "warning", f"{found}, is too old for MLX's CUDA builds", mend)
    if build == "cpu":
        return Check("gpu", "warning", f"{found}, but MLX is the CPU build", _install(suited))
    if driver < DRIVERS[build]:
        return Check("gpu", "warning", f"{found}, is too old for {build}", _install(suited))
    return Check("gpu", "ok", found)


def check_cascade() -> Check:
    """Whether the cascade's own recogniser and voice can be used."""
    from personaplex.cascade.registry import default_recogniser, find_engine
    from personaplex.cascade.session import DEFAULTS

    hears = find_engine("recogniser", default_recogniser())
    speaks = find_engine("synthesiser", DEFAULTS.synthesiser or "")
    for spec in (hears, speaks):
        if lack := spec.missing():
            return Check("cascade", "warning", f"the {spec.kind} {spec.name} cannot be used: {lack}", spec.install)
    return Check("cascade", "ok", f"{hears.name} hears, {speaks.name} speaks; `personaplex engines` lists the others")


def nvidia_card() -> tuple[str, int] | None:
    """Name and the driver's major version of the first NVIDIA card; None where there is none, or no driver."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout
        name, driver = told.splitlines()[0].rsplit(",", 1)
        return name.strip(), int(driver.strip().split(".")[0])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return None


def _backend() -> str | None:
    """The package that MLX's backend comes in, with its version."""
    for name in ("mlx-metal", "mlx-cuda-13", "mlx-cuda-12", "mlx-cpu"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return None


def _build() -> str:
    """Which of our extras MLX's backend is: cpu where there is none yet."""
    package = (_backend() or "none").split()[0]
    return {"mlx-cuda-13": "cuda13", "mlx-cuda-12": "cuda12"}.get(package, "cpu")


def _install(build: str) -> str:
    extra = f"[{build}]" if sys.platform == "linux" or build == "talk" else ""
    return f"pip install 'personaplex-mlx{extra}'"


CHECKS: dict[str, Callable[[], Check]] = {
    "mlx": check_mlx,
    "gpu": check_gpu,
    "blas": check_blas,
    "memory": check_memory,
    "disk": check_disk,
    "hub": check_hub,
    "microphone": check_microphone,
    "speaker": check_speaker,
    "opus": check_opus,
    "cascade": check_cascade,
}
