"""One Chromium for all tests of the page, whose microphone is a file; servers whose agents are scripts."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, expect, sync_playwright

from personaplex.audio import write_audio
from personaplex.cascade.backend import Cascade
from personaplex.cascade.conversation import Manner
from personaplex.conversation import Settings
from personaplex.persona import Parts
from personaplex.server.service import Backends, Service
from personaplex.units import SAMPLE_RATE
from tests.cascade_engines import Engines, LevelDetector
from tests.conftest import SHOTS
from tests.contract.scripted import Scripted, ScriptedConversation
from tests.e2e.test_report_page import PLACES
from tests.server.conftest import ABLE, serving, settings

WORDS = tuple("good evening, I am listening".split())
INSECURE = "talk.example"
"""A name that the browser takes to this machine, and does not trust with a microphone over http."""

PARTS = Parts("script-ears", "script-mind", "script-voice", voice="one")
SPEECH_SECONDS, PAUSE_SECONDS = 0.8, 1.4


LOUD = re.compile("[5-9].|100")
"""Of a level from 0 to 100."""


class Asked(Scripted):
    """A script that remembers what conversations were opened with."""

    def __init__(self, slots: int) -> None:
        super().__init__(slots, WORDS, ABLE)
        self.asked: list[Settings] = []

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008 - frozen
        conversation = super().open(settings)
        self.asked.append(settings)
        return conversation


class Server:
    """A server with two lines of each kind: one agent gives back what it hears, the other takes turns."""

    def __init__(self, patch: pytest.MonkeyPatch, **changes: object) -> None:
        self.engines = Engines(patch)
        self.duplex = Asked(2)
        cascade = Cascade(2, parts=PARTS, manner=Manner(detector=LevelDetector))

        def close() -> None:
            self.duplex.close()
            cascade.close()

        backends = Backends(
            "scripted",
            self.duplex,
            cascade,
            {"duplex": 2, "cascade": 2},
            voices=lambda: ["NATF0", "NATM1", "VARF2"],
            cascade_voices=lambda: ["one", "two"],
            role_tokens=lambda text: len(text.split()),
            context_frames=3000,
            parts=PARTS,
            close=close,
        )
        self.service = Service.of(backends, settings(**changes))
        self.address = ""

    @property
    def port(self) -> int:
        """Where it listens."""
        return urlsplit(self.address).port or 0


@pytest.fixture(scope="package")
def microphone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Somebody who says something, is quiet for longer, and begins again."""
    t = np.arange(round(SPEECH_SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    voice = 0.25 * np.sin(2 * np.pi * (160 * t + 60 * t**2)) * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * t))
    voice = voice + 0.1 * np.sin(2 * np.pi * (700 * t + 300 * t**2))
    path = tmp_path_factory.mktemp("microphone") / "voice.wav"
    write_audio(path, np.concatenate([voice, np.zeros(round(PAUSE_SECONDS * SAMPLE_RATE))]).astype(np.float32))
    return path


@pytest.fixture(scope="package")
def browser(microphone: Path) -> Iterator[Browser]:
    found = next((path for name in PLACES if (path := shutil.which(name))), None)
    assert found, "no Chromium here; install it with: sudo apt-get install --no-install-recommends chromium"
    fake = ["--use-fake-device-for-media-stream"]
    fake += [f"--use-file-for-fake-audio-capture={microphone}", f"--host-resolver-rules=MAP {INSECURE} 127.0.0.1"]
    expect.set_options(timeout=15_000)  # other tests run beside these
    with sync_playwright() as playwright:
        # As root Chromium has no sandbox.
        chromium = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-gpu", *fake])
        yield chromium
        chromium.close()


@pytest.fixture(scope="package")
def patch() -> Iterator[pytest.MonkeyPatch]:
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.fixture(scope="package")
def server(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The server of most tests. Who is away for two seconds is not waited for."""
    made = Server(patch, resume_seconds=2.0)
    with serving(made.service) as made.address:
        yield made


class Visit:
    """A page of a server, and what must not happen on it."""

    def __init__(self, context: BrowserContext) -> None:
        self.context = context
        self.page: Page = context.new_page()
        self.page.set_default_timeout(15_000)
        self.wrong: list[str] = []
        self.expected: tuple[str, ...] = ()
        self.hosts: set[str] = set()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))
        self.page.on("websocket", lambda socket: self.hosts.add(urlsplit(socket.url).netloc))

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not any(words in message.text for words in self.expected):
            self.wrong.append(message.text)

    def open(self, address: str) -> Page:
        """Go there, and wait until the server has told what it has."""
        self.page.goto(address)
        self.page.wait_for_selector("#connect:enabled", state="attached")
        return self.page

    def connect(self) -> None:
        """Call, and wait until the line stands."""
        self.page.click("#connect")
        self.page.wait_for_selector("#call[data-state=live]")

    def hang_up(self) -> None:
        """End the call."""
        self.page.click("#connect")
        self.page.wait_for_selector("#call[data-state=idle]")

    def text(self, selector: str) -> str:
        """What stands there."""
        return (self.page.text_content(selector) or "").strip()

    def both_speak(self) -> None:
        """Wait for a moment in which both sides are loud."""
        for who in ("user", "agent"):
            expect(self.page.locator(f"#{who}-level")).to_have_attribute("aria-valuenow", LOUD)

    def captions(self, who: str) -> list[str]:
        """Lines of one side, or markers."""
        selector = ".marker" if who == "marker" else f".line.{who} p"
        return [text.strip() for text in self.page.locator(f"#captions {selector}").all_text_contents()]

    def shoot(self, name: str) -> None:
        """Keep what it looks like."""
        SHOTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SHOTS / f"{name}.png")


@pytest.fixture
def visit(browser: Browser) -> Iterator[Callable[..., Visit]]:
    """Makes visits; at the end nothing was logged, and nobody but the server was asked for anything."""
    visits: list[Visit] = []

    def make(width: int = 1360, height: int = 860, scheme: str = "light") -> Visit:
        size = {"width": width, "height": height}
        context = browser.new_context(viewport=size, color_scheme=scheme, permissions=["microphone"])  # type: ignore[arg-type]
        visits.append(Visit(context))
        return visits[-1]

    yield make
    for one in visits:
        one.context.close()
    assert [one.wrong for one in visits] == [[] for _ in visits]
    for one in visits:
        assert len(one.hosts) == 1 and urlsplit(f"//{one.hosts.pop()}").hostname in ("127.0.0.1", INSECURE)
