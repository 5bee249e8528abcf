"""House rules that a linter does not know."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_requirements_hold_versions_and_hashes_and_no_address() -> None:
    for path in sorted((ROOT / "requirements").glob("*.txt")):
        text = path.read_text()
        assert "--hash=sha256:" in text
        assert "://" not in text and "index" not in text.lower() and "find-links" not in text


def test_npm_packages_are_pinned_by_version_and_hash_and_no_address() -> None:
    text = (ROOT / "requirements" / "agents-sdk" / "package-lock.json").read_text()
    packages = [about for name, about in json.loads(text)["packages"].items() if name]
    assert packages and all(about["version"] and about["integrity"].startswith("sha512-") for about in packages)
    assert "://" not in text and "resolved" not in text


def test_the_checkout_stays_small() -> None:
    assert sum(path.stat().st_size for path in committed()) < 40 << 20


def test_no_file_is_named_for_what_it_is_not() -> None:
    banned = {"utils.py", "helpers.py", "common.py", "misc.py"}
    assert not [path for path in committed() if path.name in banned]
