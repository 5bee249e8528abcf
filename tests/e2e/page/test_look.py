"""What the page looks like, and whether it can be used without a mouse, without sight, and without permission."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from personaplex.server import page as page_module
from tests.conftest import SHOTS
from tests.e2e.page.conftest import INSECURE, WORDS, Server, Visit
from tests.e2e.test_report_page import pixels
from tests.server.conftest import serving

Visits = Callable[..., Visit]
TOKEN = "a-good-long-token"

SIZES = {"desktop": (1360, 860), "phone": (390, 844)}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_seen(server: Server, visit: Visits, scheme: str) -> None:
    """On a desktop and on a telephone, which call at once, and then chat."""
    server.engines.thinker.tokens = ["From nine to five, every day but Sunday."]
    callers = {size: visit(*SIZES[size], scheme) for size in SIZES}
    for size, caller in callers.items():
        caller.open(server.address)
        caller.shoot(f"idle-{scheme}-{size}")
        caller.connect()
    for size, caller in callers.items():
        expect(caller.page.locator("#captions")).to_contain_text(WORDS[-1])
        caller.both_speak()
        caller.shoot(f"call-{scheme}-{size}")
        check_colours(caller.page, SHOTS / f"call-{scheme}-{size}.png")
        assert caller.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0], "nothing sticks out"
        caller.hang_up()
        caller.page.click("#tab-chat")
        caller.page.fill("#message", "When are you open?")
        caller.page.press("#message", "Enter")
        expect(caller.page.locator(".message.agent footer")).to_contain_text("all")
        caller.shoot(f"chat-{scheme}-{size}")
        assert caller.page.evaluate("document.documentElement.scrollWidth") <= SIZES[size][0]


def check_colours(page: Page, shot: Path) -> None:
    """Both voices are seen in their colours, and the background is the scheme's."""
    seen = pixels(shot).astype(int)
    for name in ("user", "agent"):
        near = np.abs(seen - rgb(page, name)).sum(axis=2) < 24
        assert near.sum() > 200, f"the colour of {name} is not to be seen"
    assert np.abs(seen[-1, 0] - rgb(page, "back")).sum() < 24


def rgb(page: Page, name: str) -> list[int]:
    """A colour of the style, as the browser understands it in its scheme."""
    probe = (
        "name => { const e = document.createElement('i'); e.style.color = `var(--${name})`; document.body.append(e);"
    )
    probe += " const c = getComputedStyle(e).color; e.remove(); return c; }"
    return [int(x) for x in re.findall(r"\d+", page.evaluate(probe, name))[:3]]


def luminance(colour: list[int]) -> float:
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in colour)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


READ = [("text", "back"), ("text", "panel"), ("soft", "back"), ("soft", "panel"), ("on-accent", "agent")]
READ += [
    ("on-accent", "user"),
    ("bad", "bad-wash"),
    ("text", "bad-wash"),
    ("text", "agent-wash"),
    ("text", "user-wash"),
]
READ += [("user", "panel"), ("agent", "panel"), ("soft", "agent-wash")]


def test_what_is_written_can_be_read(server: Server, visit: Visits) -> None:
    """Contrast of every pair of colours in use, as WCAG 2 (1.4.3) wants it for text: at least 4.5."""
    page = visit().open(server.address)
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for ink, paper in READ:
            light, dark = sorted((luminance(rgb(page, ink)), luminance(rgb(page, paper))), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {paper}, {scheme}"


def test_the_colours_can_be_chosen(server: Server, visit: Visits) -> None:
    guest = visit(scheme="light")
    page = guest.open(server.address)
    light = rgb(page, "back")
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Colours: dark"
    dark = rgb(page, "back")
    assert luminance(dark) < 0.1 < luminance(light)
    page.reload()
    assert rgb(page, "back") == dark
    page.click("#theme")
    page.click("#theme")
    assert page.get_attribute("#theme", "aria-label") == "Colours: as the system" and rgb(page, "back") == light


NAMELESS = """
() => [...document.querySelectorAll('button, input, select, textarea, [role], [tabindex], summary, a')].filter((e) => {
  if (e.closest('[hidden]') || e.matches('[role=status], [role=alert]')) return false;
  const text = (nodes) => [...(nodes ?? [])].map((node) => node?.textContent ?? '').join('');
  const by = (e.getAttribute('aria-labelledby') ?? '').split(' ').map((id) => document.getElementById(id));
  const own = e.matches('button, summary, a') ? e.textContent : '';
  return !((e.getAttribute('aria-label') ?? '') + text(by) + text(e.labels) + own).trim();
}).map((e) => e.outerHTML.slice(0, 120))
"""
"""Elements that do something and have no name."""


def test_without_a_mouse(server: Server, visit: Visits) -> None:
    guest = visit()
    page = guest.open(server.address)
    assert page.evaluate(NAMELESS) == [], "everything has a name that can be read out"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "tab-call"
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    assert page.evaluate(NAMELESS) == []
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tabpanel", name="Call")).to_be_visible()
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("Space")
    page.wait_for_selector("#call[data-state=live]")
    page.keyboard.press("m")
    expect(page.get_by_role("button", name="Mute")).to_have_attribute("aria-pressed", "true")
    assert guest.text("#status") == "You are muted."
    page.keyboard.press("m")
    page.keyboard.press("r")
    expect(page.get_by_role("button", name="Recording")).to_have_attribute("aria-pressed", "true")
    assert page.get_by_role("meter", name="You").count() == page.get_by_role("meter", name="Agent").count() == 1
    page.keyboard.press("Space")
    page.wait_for_selector("#call[data-state=idle]")


def test_muted_is_silence_to_the_server_and_to_the_recording(server: Server, visit: Visits) -> None:
    guest = visit()
    page = guest.open(server.address)
    guest.connect()
    page.click("#mute")
    page.click("#record")
    expect(page.locator("#clock")).to_have_text("0:02")
    assert float(page.get_attribute("#user-level", "aria-valuenow") or 1) == 0
    guest.hang_up()
    with page.expect_download() as download:
        page.click("#download")
    with av.open(str(download.value.path())) as file:
        pcm = np.concatenate([frame.to_ndarray().reshape(-1, 2) for frame in file.decode(audio=0)])
    assert len(pcm) > 12_000
    assert not pcm[:, 0].any() and np.abs(pcm[12_000:, 1]).max() < 100, "nothing came back, for nothing was sent"


def test_a_microphone_that_is_not_allowed(server: Server, visit: Visits, browser: Browser) -> None:
    guest = visit()
    page = guest.open(server.address)
    session = browser.new_browser_cdp_session()
    about = guest.context.new_cdp_session(page).send("Target.getTargetInfo")["targetInfo"]
    setting = {"permission": {"name": "microphone"}, "setting": "denied", "origin": server.address}
    session.send("Browser.setPermission", {**setting, "browserContextId": about["browserContextId"]})
    page.click("#connect")
    expect(page.locator("#trouble-title")).to_have_text("The microphone was not allowed")
    assert page.get_attribute("#call", "data-state") == "idle" and server.service.in_use("duplex") == 0
    guest.shoot("denied")
    session.send(
        "Browser.setPermission", {**setting, "setting": "granted", "browserContextId": about["browserContextId"]}
    )
    page.click("#trouble-action")
    page.wait_for_selector("#call[data-state=live]")
    guest.hang_up()


LATE = """
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
const allowed = new Promise((go) => { window.allow = go; });
navigator.mediaDevices.getUserMedia = async (what) => {
  window.stream = await ask(what);
  await allowed;
  return window.stream;
};
"""


def test_who_gives_up_before_the_microphone_is_allowed_is_not_listened_to(server: Server, visit: Visits) -> None:
    guest = visit()
    page = guest.page
    page.add_init_script(LATE)
    guest.open(server.address)
    n_before = len(server.duplex.asked)
    page.click("#connect")
    expect(page.locator("#status")).to_have_text("Asking for the microphone…")
    page.click("#connect")
    page.wait_for_selector("#call[data-state=idle]")
    page.evaluate("window.allow()")
    ended = "() => new Promise((done) => { const t = setInterval(() => { if (window.stream?.getTracks().every("
    ended += "(track) => track.readyState === 'ended')) { clearInterval(t); done(true); } }, 20); })"
    assert page.evaluate(ended)
    assert page.locator("#trouble").is_hidden() and len(server.duplex.asked) == n_before
    assert page.get_attribute("#call", "data-state") == "idle"


@pytest.fixture(scope="module")
def guarded(patch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server that wants a token and keeps transcripts."""
    made = Server(patch, token=TOKEN, history="sqlite://")
    with serving(made.service) as made.address:
        yield made


def test_a_page_that_is_not_secure(guarded: Server, visit: Visits) -> None:
    guest = visit()
    guest.expected = ("Cross-Origin-Opener-Policy",)  # which a browser ignores there, and says so
    page = guest.open(f"http://{INSECURE}:{guarded.port}/?token={TOKEN}")
    assert TOKEN not in page.url, "a token is not left where it can be read over a shoulder"
    page.click("#connect")
    expect(page.locator("#trouble-title")).to_have_text("The browser keeps the microphone from this page")
    assert "--self-signed" in guest.text("#trouble-text")
    guest.shoot("insecure")


def test_a_server_that_wants_a_token(guarded: Server, visit: Visits) -> None:
    guest = visit()
    guest.expected = ("401",)
    page = guest.page
    page.goto(guarded.address)
    asked = {"wrong-token": "This server asks for a token", TOKEN: "That is not this server’s token"}
    for attempt, words in asked.items():
        expect(page.locator("#key")).to_be_visible()
        expect(page.locator("#key-title")).to_have_text(words)
        guest.shoot("token")
        page.fill("#key-value", attempt)
        page.press("#key-value", "Enter")
    page.wait_for_selector("#connect:enabled")
    expect(page.locator("#key")).to_be_hidden()
    assert guest.text("#privacy") == "This server keeps transcripts."
    guest.connect()
    guest.hang_up()
    page.reload()
    page.wait_for_selector("#connect:enabled")  # the tab remembers it


def test_the_browser_would_tell_what_the_policy_forbids(server: Server, visit: Visits) -> None:
    """So that the silence of the other tests says something."""
    guest = visit()
    page = guest.open(server.address)
    with page.expect_console_message(lambda message: "Content Security Policy" in message.text):
        page.evaluate("() => { new Image().src = 'http://127.0.0.1:9/x.png'; }")
    assert guest.wrong
    assert page_module.POLICY.startswith("default-src 'none'")
    guest.wrong.clear()
    guest.hosts = {host for host in guest.hosts if not host.endswith(":9")}
