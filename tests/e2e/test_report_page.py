"""The report's page in a real browser: it is drawn, in light and dark, wide and narrow, and nothing goes wrong."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import av
import numpy as np
import pytest

from personaplex.audio import write_audio
from personaplex.cli.main import main
from personaplex.drawing.style import STYLE
from tests.listening import write_model

PLACES = ("chromium", "chromium-browser", "google-chrome",
          "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
          "/Applications/Chromium.app/Contents/MacOS/Chromium")  # fmt: skip
CHARTS = 4 + 3 + 3 + 1


@pytest.fixture(scope="module")
def browser() -> str:
    found = next((path for name in PLACES if (path := shutil.which(name))), None)
    assert found, "no Chromium here; install it with: sudo apt-get install --no-install-recommends chromium"
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report by the program, with candidates that differ much, little and not at all."""
    folder = tmp_path_factory.mktemp("report")
    model = write_model(folder / "mo<d>el & co", listens=True)
    write_audio(folder / "question.wav", np.random.default_rng(0).normal(0, 0.1, 20_000).astype(np.float32))
    arguments = ["quantisation-report", "--reference", str(model), "--bits", "16,4,mixed", "--group-size", "32"]
    arguments += ["--kv-bits", "16,8", "--tail-seconds", "0.5", "--audio", str(folder / "question.wav")]
    assert main([*arguments, "--out", str(folder / "out")]) == 0
    return folder / "out"


def run(browser: str, profile: Path, *arguments: str) -> tuple[str, str]:
    """What the browser prints, and what its pages logged."""
    basics = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--disable-background-networking"]
    basics += ["--no-first-run", f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=1000"]
    done = subprocess.run([browser, *basics, *arguments], capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def pixels(png: Path) -> np.ndarray:
    with av.open(str(png)) as picture:
        return next(picture.decode(video=0)).to_ndarray(format="rgb24")


def rgb(scheme: str, name: str) -> list[int]:
    """A colour of the style: of the light scheme, which comes first, or of the dark one."""
    found: list[str] = re.findall(rf"--{name}: #([0-9a-f]+)", STYLE)
    digits = found[scheme == "dark"]
    digits = digits if len(digits) == 6 else "".join(2 * d for d in digits)
    return [int(digits[i : i + 2], 16) for i in (0, 2, 4)]


def test_every_plot_is_there_and_nothing_is_logged(browser: str, report: Path, tmp_path: Path) -> None:
    page = report / "report.html"
    text = page.read_text()
    assert "://" not in text and "<script" not in text and "nan" not in text.lower()
    assert "mo&lt;d&gt;el &amp; co" in text
    dom, logged = run(browser, tmp_path, "--dump-dom", page.as_uri())
    assert logged == ""
    assert dom.count("<figure>") == CHARTS == dom.count('role="img"')
    for title in ("text: divergence against bits", "Top-1 agreement", "semantic: divergence over time", "Drift of the"):
        assert f"<h3>{title}" in dom
    assert len(re.findall(r"<tr>", dom)) == 1 + 6
    figures = re.findall(r"<figure>.*?</figure>", dom, re.DOTALL)
    for figure in figures:
        marks = len(re.findall(r'class="m\d"|<polyline', figure))
        assert marks >= 6 or ("words:" in figure and "no such moment" in figure), "each candidate is in each plot"


def test_the_browser_would_log_a_plot_that_cannot_be_drawn(browser: str, report: Path, tmp_path: Path) -> None:
    """So the other test can fail."""
    broken = tmp_path / "broken.html"
    broken.write_text((report / "report.html").read_text().replace('<path class="axis" d="M', '<path d="Mnan '))
    _, logged = run(browser, tmp_path / "profile", "--dump-dom", broken.as_uri())
    assert "Expected number" in logged


@pytest.mark.parametrize("width", [400, 1200])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_seen(browser: str, report: Path, tmp_path: Path, scheme: str, width: int) -> None:
    """Background and curves have the scheme's colours, up to the edge of what is narrow."""
    png = tmp_path / "page.png"
    blink = f"--blink-settings=preferredColorScheme={int(scheme == 'light')}"
    shot = [blink, f"--window-size={width},5000", f"--screenshot={png}", (report / "report.html").as_uri()]
    run(browser, tmp_path / "profile", *shot)
    found = pixels(png).astype(int)
    assert found.shape[1] >= width
    assert (found[-1, -1] == rgb(scheme, "back")).all()
    for candidate in range(6):
        near = np.abs(found - rgb(scheme, f"c{candidate}")).sum(axis=2) < 12
        assert near.sum() > 30, f"candidate {candidate} is not to be seen"
    panel = (found == rgb(scheme, "panel")).all(axis=2)
    assert panel.any(axis=0).sum() > 0.8 * min(width, 1100)


def test_what_the_program_says_is_in_json_and_in_the_table(report: Path) -> None:
    table = (report / "quality.md").read_text().splitlines()
    assert len(table) == 2 + 6 and table[2].startswith("| 16 | 16.00 |") and "| 8 bits |" in table[3]
    assert not [path for path in report.iterdir() if path.name not in ("report.html", "report.json", "quality.md")]
