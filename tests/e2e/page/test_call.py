"""Calls in a real browser: what the microphone hears goes to the server, what comes back is played and captioned."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from playwright.sync_api import expect

from tests.e2e.page.conftest import LOUD, WORDS, Server, Visit
from tests.line import Line

Visits = Callable[..., Visit]


def recording(visit: Visit, folder: Path) -> np.ndarray:
    """What the page recorded: samples [S, 2] at 24 kHz, user and agent."""
    with visit.page.expect_download() as download:
        visit.page.click("#download")
    path = folder / "call.wav"
    download.value.save_as(path)
    pcm, rate = soundfile.read(path, dtype="float32")
    assert rate == 24_000 and pcm.ndim == 2 and pcm.shape[1] == 2
    return np.asarray(pcm)


def echo(pcm: np.ndarray) -> tuple[float, float]:
    """How much later, in seconds, the right channel says what the left one does, and how much of it.

    Piece by piece, for on a busy machine the player may have to wait in the middle.
    """
    left, right = pcm.T
    size, reach = 7_200, 24_000
    found = []
    for start in range(0, len(left) - reach, size // 2):
        piece, where = left[start : start + size], right[start : start + reach]
        if np.sqrt(np.mean(np.square(piece))) < 0.02:
            continue
        alike = np.correlate(where, piece, "valid")
        power = np.convolve(np.square(where), np.ones(size), "valid")
        alike /= np.sqrt(np.maximum(power, 1e-3) * np.square(piece).sum())
        found.append((alike.argmax() / 24_000, alike.max() > 0.9))
    assert len(found) >= 2, "the microphone was heard"
    return float(np.median([later for later, same in found if same])), float(np.mean([same for _, same in found]))


def talk(visit: Visit, seconds: int, folder: Path) -> np.ndarray:
    visit.page.click("#record")
    expect(visit.page.locator("#clock")).to_have_text(f"0:0{seconds}")
    visit.hang_up()
    return recording(visit, folder)


def test_speak_and_hear(server: Server, visit: Visits, tmp_path: Path) -> None:
    """The agent gives back what it hears: so what is played is what was said, later, and nothing of it is missing."""
    caller = visit()
    page = caller.open(server.address)
    caller.connect()
    assert server.service.in_use("duplex") == 1
    pcm = talk(caller, 3, tmp_path)
    later, share = echo(pcm)
    assert share > 0.7 and 0.05 < later < 0.9
    assert caller.captions("agent") == [" ".join(WORDS)]
    assert caller.text("#latency").endswith(" ms") and 50 < int(caller.text("#latency")[:-3]) < 2000
    assert caller.text("#status") == "The call has ended." and page.locator("#mute").is_disabled()
    until(lambda: server.service.in_use("duplex") == 0)


def until(true: Callable[[], bool]) -> None:
    """Wait for what the server is about to notice."""
    end = time.monotonic() + 5
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


OWN_RATE = """
const make = AudioContext.prototype.createMediaStreamSource;
AudioContext.prototype.createMediaStreamSource = function (stream) {
  if (this.sampleRate === 24000) throw new DOMException('', 'NotSupportedError');
  window.rate = this.sampleRate;
  return make.call(this, stream);
};
"""


def test_a_browser_that_records_at_its_own_rate_only(server: Server, visit: Visits, tmp_path: Path) -> None:
    """As Firefox does."""
    caller = visit()
    caller.page.add_init_script(OWN_RATE)
    caller.open(server.address)
    caller.connect()
    assert caller.page.evaluate("window.rate") in (44_100, 48_000)
    later, share = echo(talk(caller, 3, tmp_path))
    assert share > 0.7 and 0.05 < later < 0.9


ASKED = """
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
window.asked = [];
navigator.mediaDevices.getUserMedia = (what) => { window.asked.push(what.audio.echoCancellation); return ask(what); };
"""


def test_headphones_and_loud_speakers(server: Server, visit: Visits, tmp_path: Path) -> None:
    """In the middle of a call; and where echo cannot be taken out, the microphone is shut while the agent speaks."""
    caller = visit()
    page = caller.page
    page.add_init_script(ASKED)
    caller.open(server.address)
    caller.connect()
    page.check("[name=ears][value=headphones]", force=True)
    caller.both_speak()
    assert page.evaluate("window.asked") == [True, False]
    page.check("[name=ears][value=speakers]", force=True)
    page.click(".advanced summary")
    page.check("#guard")
    user, agent = talk(caller, 4, tmp_path).T
    blocks = np.array([np.sqrt(np.mean(np.square(agent[i : i + 960]))) > 0.02 for i in range(0, len(agent) - 960, 960)])
    assert blocks.sum() > 5, "the agent was heard"
    heard = [bool(user[960 * i : 960 * (i + 1)].any()) for i in np.flatnonzero(blocks)[1:]]
    assert sum(heard) <= 2, "and the user not meanwhile"


def test_who_one_talks_with(server: Server, visit: Visits) -> None:
    """Persona, voice, role, seed and sampling of the form are what the conversation is opened with."""
    caller = visit()
    page = caller.open(server.address)
    page.select_option("#persona", "sage")
    assert page.input_value("#role").startswith("Your name is Sage.") and page.input_value("#voice") == "NATM1"
    expect(page.locator("#tokens")).to_have_text("29 tokens")
    page.select_option("#persona", "claudia")
    page.select_option("#voice", "NATF0")
    page.fill("#role", "You keep a lighthouse.")
    expect(page.locator("#tokens")).to_have_text("4 tokens")
    page.click(".advanced summary")
    page.fill("#seed", "7")
    page.fill("#audio_top_k", "100")
    caller.connect()
    asked = server.duplex.asked[-1]
    assert (asked.voice, asked.prompt, asked.seed) == ("NATF0", "You keep a lighthouse.", 7)
    assert asked.sampling == {"text_temperature": 0.8, "audio_top_k": 100}, "the persona's own, and what was changed"
    assert page.locator("#role").is_disabled(), "what cannot change in a call is locked"
    page.reload()
    page.wait_for_selector("#connect:enabled")
    until(lambda: server.service.in_use("duplex") == 0)  # who leaves the page has hung up
    assert page.input_value("#role") == "You keep a lighthouse." and page.input_value("#voice") == "NATF0"


def test_in_turns_with_a_language_model(server: Server, visit: Visits) -> None:
    """Tap, talk, silence ends it, the answer is heard, and it is the user's turn again; both sides have captions.

    A tap cuts an answer short, and the next one rests.
    """
    server.engines.thinker.tokens = ["Good day. ", "It is ", "noon."]
    server.engines.recogniser.said = ["what time is it", "and now", "", "", ""]
    caller = visit()
    page = caller.open(server.address)
    page.check("[name=manner][value=turns]", force=True)
    page.check("[name=backend][value=cascade]", force=True)
    assert page.locator("#voice option").all_text_contents() == ["Its own", "one", "two"]
    page.click(".advanced summary")
    page.fill("#silence", "0.4")
    caller.connect()
    page.wait_for_selector("#call[data-turn=answering]")
    assert caller.text("#connect-label") == "Answering"
    page.wait_for_selector("#call[data-turn=listening]")
    assert caller.captions("user")[0] == "what time is it"
    assert caller.captions("agent")[0] == "Good day. It is noon."
    assert caller.text("#latency").endswith(" ms")
    server.engines.thinker.tokens = ["It is a very long story, and it has no end, as far as I know. "] * 5
    page.wait_for_selector("#call[data-turn=answering]")
    expect(page.locator("#agent-level")).to_have_attribute("aria-valuenow", LOUD)
    page.click("#connect")
    assert page.get_attribute("#call", "data-turn") == "listening"
    expect(page.locator("#agent-level")).to_have_attribute("aria-valuenow", "0")
    page.wait_for_selector("#captions .line.cut")
    assert len(caller.captions("agent")[-1]) < 5 * 64, "what was not heard is not shown"
    page.click("#connect")
    assert page.get_attribute("#call", "data-turn") == "resting" and "Tap" in caller.text("#connect-label")
    page.click("#end")
    page.wait_for_selector("#call[data-state=idle]")


def test_every_line_taken(server: Server, visit: Visits) -> None:
    caller = visit()
    page = caller.open(server.address)
    others = [server.service.open("duplex", server.service.choose(), client="test") for _ in range(2)]
    page.click("#connect")
    page.wait_for_selector("#trouble:visible")
    assert caller.text("#trouble-title") == "All lines are taken"
    assert "2 of 2 in use" in caller.text("#trouble-text")
    assert page.get_attribute("#call", "data-state") == "idle"
    caller.shoot("refused")
    for other in others:
        other.close()
    page.click("#trouble-action")
    page.wait_for_selector("#call[data-state=live]")
    assert page.locator("#trouble").is_hidden()
    caller.hang_up()


@pytest.fixture
def line(server: Server) -> Line:
    return Line(server.port)


def test_a_line_that_breaks_is_taken_up_again(server: Server, visit: Visits, line: Line) -> None:
    """The conversation goes on, and is the same one; where that cannot be, the page says so."""
    n_before = len(server.duplex.asked)
    with line:
        caller = visit()
        caller.expected = ("WebSocket connection",)
        page = caller.open(f"http://127.0.0.1:{line.port}")
        caller.connect()
        page.wait_for_selector("#captions .agent")
        line.cut()
        page.wait_for_selector("#captions .marker")
        page.wait_for_selector("#call[data-state=live]")
        assert caller.captions("marker") == ["Connected again"]
        expect(page.locator("#captions")).to_contain_text(WORDS[-1])
        assert "".join(caller.captions("agent")).split() == list(WORDS), "not a word is missing, or there twice"
        assert len(server.duplex.asked) == n_before + 1 and server.service.in_use("duplex") == 1
        line.down = True
        line.cut()
        expect(page.locator("#status")).to_contain_text("Coming back")
        caller.shoot("coming-back")
        page.wait_for_selector("#trouble:visible")
        assert caller.text("#trouble-title") == "The connection was lost"
        assert page.get_attribute("#call", "data-state") == "idle"
        line.down = False
        page.click("#trouble-action")
        page.wait_for_selector("#call[data-state=live]")
        caller.hang_up()
