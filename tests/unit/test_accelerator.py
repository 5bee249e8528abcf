"""A fast BLAS before MLX, told apart from none and from too late. Each case is a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from personaplex import accelerator
from personaplex.accelerator import IMPORTED_TOO_EARLY, blas, explain
from personaplex.cli import train
from personaplex.errors import BackendError

on_linux_cpu = pytest.mark.skipif(
    not accelerator._mlx_has("mlx_cpu.libs"), reason="only MLX's Linux CPU build needs a BLAS"
)


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def bound_to(debug: str) -> set[str]:
    """Libraries that libmlx's `cblas_sgemm` was bound to, by the linker's own report."""
    lines = [line for line in debug.splitlines() if "libmlx.so" in line and "`cblas_sgemm'" in line]
    return {re.split(r"[.-]", Path(line.split(" to ")[1].split()[0]).name)[0] for line in lines}


@on_linux_cpu
def test_this_machine_has_a_fast_blas() -> None:
    """`make test` installs one; without it the suite would take many times longer."""
    assert blas.library is not None and blas.advice is None


@on_linux_cpu
def test_it_is_the_one_that_mlx_calls() -> None:
    """The dynamic linker says to which library it binds MLX's matrix product."""
    code = "import personaplex, mlx.core as mx; mx.eval(mx.ones((64, 64)) @ mx.ones((64, 64)))"
    assert blas.library is not None
    library = Path(blas.library).name.split(".")[0]
    assert bound_to(python(code, LD_DEBUG="bindings").stderr) == {library}
    assert bound_to(python(code, LD_DEBUG="bindings", PERSONAPLEX_BLAS="none").stderr) == {"libblas"}


@on_linux_cpu
def test_mlx_imported_first_is_noticed() -> None:
    done = python("import mlx.core, personaplex; print(personaplex.accelerator.blas.library)")
    assert done.stdout == "None\n"
    assert IMPORTED_TOO_EARLY in done.stderr and "RuntimeWarning" in done.stderr
    assert python("import personaplex, mlx.core").stderr == ""


@on_linux_cpu
def test_where_there_is_none_one_line_says_how_to_get_it() -> None:
    code = (
        "import ctypes\n"
        "def missing(*_, **__): raise OSError('not there')\n"
        "ctypes.CDLL = missing\n"
        "import personaplex\n"
        "print(personaplex.accelerator.blas.advice)"
    )
    done = python(code)
    assert "apt install libopenblas0" in done.stdout and len(done.stdout.splitlines()) == 1 and done.stderr == ""
    wished = python("import personaplex; print(personaplex.accelerator.blas.advice)", PERSONAPLEX_BLAS="nonsense.so")
    assert wished.stdout == "PERSONAPLEX_BLAS=nonsense.so cannot be loaded\n"


def test_mlx_without_a_backend_is_explained() -> None:
    """What Linux says after a plain `pip install mlx`."""
    error = explain(ImportError("libmlx.so: cannot open shared object file: No such file or directory"))
    assert isinstance(error, BackendError) and "personaplex-mlx[cpu]" in str(error)
    other = ImportError("No module named 'elsewhere'", name="elsewhere")
    assert explain(other) is other


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, accelerator.FRAME_OPS),
        ({"PERSONAPLEX_KERNELS": "auto,no-stack"}, accelerator.FRAME_OPS),
        ({"PERSONAPLEX_KERNELS": "stock"}, None),  # thousands of operations a frame
        ({"MLX_MAX_OPS_PER_BUFFER": "40"}, "40"),
    ],
)
def test_graphs_are_short_where_frames_are_few_operations(
    given: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MLX_MAX_OPS_PER_BUFFER", "MLX_MAX_MB_PER_BUFFER", "PERSONAPLEX_KERNELS"):
        monkeypatch.setenv(name, "")  # so that it is put back whatever is done to it
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLX_ENABLE_TF32", "0")
    monkeypatch.setattr(accelerator, "_mlx_has", lambda part: part.startswith("mlx_cuda"))
    accelerator.load()
    assert os.environ.get("MLX_MAX_OPS_PER_BUFFER") == expected
    assert os.environ["MLX_MAX_MB_PER_BUFFER"] == "1000000"
    # In training a step has thousands: MLX's own length, unless somebody asked for another.
    train.command.callback()  # type: ignore[misc]
    assert os.environ.get("MLX_MAX_OPS_PER_BUFFER") == (None if expected == accelerator.FRAME_OPS else expected)


def test_public_names_come_from_their_modules() -> None:
    import personaplex

    for name in personaplex.__all__:
        assert getattr(personaplex, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = personaplex.nothing
