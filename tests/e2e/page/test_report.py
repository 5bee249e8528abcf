"""The report's page in a browser: nothing overflows, no request leaves, and what it is about is to be seen."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser

from personaplex.audio import read_audio
from personaplex.cli.main import main
from personaplex.evaluate.result import Failure, Result
from personaplex.evaluate.row import median, share
from personaplex.live.recording import Recording
from personaplex.report.quantised import STREAMS
from personaplex.steps import StepMeasure
from personaplex.units import SAMPLE_RATE
from tests.conftest import SHOTS
from tests.e2e.test_report_page import pixels, rgb

QUESTION = Path(__file__).parents[3] / "examples" / "question.wav"
LONG_NAME = "a-name-without-any-place-to-break-it-" * 4

WIDE = """() => {
  const most = document.documentElement.clientWidth, found = [];
  for (const one of document.querySelectorAll('body *')) {
    if (one.closest('.scroll, .table') && !one.matches('.scroll, .table')) continue;
    if (one.closest('svg') && !one.matches('svg')) continue;
    if (one.getBoundingClientRect().right > most + 0.5) found.push(one.outerHTML.slice(0, 80));
  }
  return [document.documentElement.scrollWidth > most, found];
}"""
"""Whether the page can be scrolled sideways, and what sticks out; boxes that scroll by themselves may hold more."""


COVERED = """() => {
  const words = [...document.querySelectorAll('.timeline .said')];
  const boxes = words.map(one => [one.textContent, one.getBoundingClientRect()]);
  const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom - 2 && b.top < a.bottom - 2;
  return [boxes.length, boxes.flatMap(([text, a], i) =>
    boxes.slice(i + 1).filter(([_, b]) => meet(a, b)).map(([other, _]) => text + ' / ' + other))];
}"""
"""How many words there are, and which lie on each other."""


def conversation(path: Path) -> None:
    """The bundled question twice; the agent, whose voice it is too, answers it and is interrupted by the second."""
    question = read_audio(QUESTION)
    n = len(question)
    user, agent = (np.zeros(round(3.5 * n), np.float32) for _ in range(2))
    user[:n] = question
    agent[n + SAMPLE_RATE // 2 :][:n] = 0.5 * question
    user[2 * n :][:n] = question
    recording = Recording(path, {"left": "agent", "right": "user", "model": "tiny<m>", "prompt": LONG_NAME})
    recording.add(agent, user)
    for i, word in enumerate("the agent says so many words that no two may lie on each other".split()):
        recording.note(4.1 + 0.25 * i, "agent text", text=f" {word}")
    recording.note(7.5, "interrupted")
    for i in range(len(agent) // 1920):
        recording.step(0.08 * i, StepMeasure(40 + 50 * (i % 10 == 0), 0.5, 1 + i % 3, 2))
    recording.close(seed=1)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of everything that there can be in one, by the program."""
    folder = tmp_path_factory.mktemp("sources")
    conversation(folder / f"{LONG_NAME}.wav")
    rows = [
        share("takeover in a pause", [True] + [False] * 19, 0.2, at_most=True),
        share("answers", [True, False], 0.9),
    ]
    rows.append(median("latency", [320.0, 410, 500, 700, 820, 1200], 800))
    Result("duplex", {"seed": 3}, rows, [], [Failure("clip 17", "was cut short")]).save(folder / "duplex.json")
    kl = {name: {"kl": 0.001 * (i + 1), "top1": 0.9} for i, name in enumerate(STREAMS)}
    candidate = {"name": "4", "kv_bits": 16, "bits_per_weight": 4.5, "verdict": "beyond", "streams": kl}
    quantised = {"reference": "tiny", "seconds": 9.6, "candidates": [candidate, {**candidate, "name": "mixed"}]}
    (folder / "bits.json").write_text(json.dumps(quantised))
    (folder / "broken.json").write_text("{")
    out = tmp_path_factory.mktemp("report") / "report.html"
    assert main(["report", str(folder), "-q", "-o", str(out)]) == 0
    return out


@pytest.mark.parametrize("width", [375, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overflows_and_no_request_leaves(
    browser: Browser, report: Path, tmp_path: Path, scheme: str, width: int
) -> None:
    shot = tmp_path / "panel.png"
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
    page, asked, said = context.new_page(), list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(report.as_uri())
    assert page.evaluate(WIDE) == [False, []]
    assert page.evaluate(COVERED) == [14, []]
    page.set_content(report.read_text() + '<div style="width: 3000px">wide</div>')
    scrolls, found = page.evaluate(WIDE)
    assert scrolls and len(found) == 1, "so this test can fail"
    page.goto(report.as_uri())
    SHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SHOTS / f"report-{scheme}-{width}.png", full_page=True)  # for people to look at
    back = "rgb({}, {}, {})".format(*rgb(scheme, "back"))
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == back
    panel = page.locator(".panel")
    panel.screenshot(path=shot)
    corner, image = panel.bounding_box(), page.locator("image").nth(1).bounding_box()
    context.close()
    assert said == [] and {url for url in asked if not url.startswith("data:")} == {report.as_uri()}
    seen = pixels(shot).astype(int)
    for what, colour in (("agent", "c0"), ("user", "c1"), ("late step", "bad"), ("text entropy", "c2")):
        assert (np.abs(seen - rgb(scheme, colour)).sum(axis=2) < 12).sum() > 60, f"{what} is not to be seen"
    assert corner is not None and image is not None
    x, y = round(image["x"] - corner["x"]), round(image["y"] - corner["y"])
    picture = seen[y : y + round(image["height"]), x:-20].mean(axis=2)
    ink = picture < 100 if scheme == "light" else picture > 160
    assert 0.02 < ink.mean() < 0.5, "the user's spectrogram: ink that stands out, and room around it"


def test_it_holds_everything_as_text_and_loads_nothing(report: Path) -> None:
    text = report.read_text()
    assert "<script" not in text and "http" not in text and "url(" not in text and "@import" not in text
    assert "tiny&lt;m&gt;" in text and "<m>" not in text and "nan" not in re.sub(r"base64,[^\"]+", "", text).lower()
    for said in ("the user interrupts", "Could not be read: 1", "Could not be measured: 1", "KL per codebook",
                 "Entropy of semantic tokens", "Step times", "Answer latencies", "takeover in a pause", "missed",
                 "what the user said: nothing of it was transcribed"):  # fmt: skip
        assert said in text, said
    for figure in re.findall(r"<svg [^>]*>", text):
        assert 'aria-label="' in figure or 'aria-hidden="true"' in figure, figure
    assert len(re.findall(r'<image [^>]*href="data:image/png;base64,', text)) == 2
    assert text.count('class="overlap"') == 1 and text.count('class="late"') == 16, "every tenth step of 155 is late"
    table = re.search(r"<caption>Turns</caption>.*?</table>", text, re.DOTALL)
    assert table is not None and "the agent says so many words" in table[0]


def test_the_numbers_beside_it_are_those_of_the_page(report: Path) -> None:
    result = Result.load(report.with_suffix(".json"))
    found = {row.what: row for row in result.rows}
    assert found["step time"].value == 40 and found["steps over 80 ms"].value == pytest.approx(0.1, abs=0.01)
    assert found["semantic entropy"].value == pytest.approx(2, abs=0.05)
    assert found["duplex: takeover in a pause"].value == 0.05
    assert [failure.item for failure in result.failures][1] == "clip 17"
    (talk,) = (item for item in result.items if item["type"] == "conversation")
    assert [turn["side"] for turn in talk["turns"]] == ["user", "agent", "user"]
    (overlap,) = (one for one in talk["overlaps"] if one["outlasts"])
    assert overlap["second"] == "user"
    # The question's own speech begins and ends within it, so the answer follows after more than the half second.
    assert 0.5 < talk["answers"][0]["latency_ms"] / 1000 < 1.2
