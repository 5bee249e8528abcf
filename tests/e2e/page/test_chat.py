"""The chat in a real browser: named sessions, answers that grow token by token, who answers."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import WebSocketRoute, expect

from tests.e2e.page.conftest import Server, Visit

Visits = Callable[..., Visit]


def say(visit: Visit, text: str) -> None:
    visit.page.fill("#message", text)
    visit.page.press("#message", "Enter")


def said(visit: Visit) -> list[str]:
    return [text.strip() for text in visit.page.locator("#messages .message p").all_text_contents()]


def names(visit: Visit) -> list[str]:
    return [text.strip() for text in visit.page.locator("#sessions b").all_text_contents()]


def test_an_answer_grows_and_can_be_stopped(server: Server, visit: Visits) -> None:
    server.engines.thinker.tokens = [30.0, "never"]
    guest = visit()
    page = guest.open(f"{server.address}/#chat")
    expect(page.locator("#messages")).to_contain_text("Say hello to Assistant.")
    say(guest, "Hello!")
    page.wait_for_selector(".message.thinking i")
    assert page.get_attribute("#send", "aria-label") == "Stop"
    page.click("#send")
    expect(page.locator(".message.agent footer")).to_contain_text("stopped")
    server.engines.thinker.tokens = ["Good ", "day, ", 30.0, "never"]
    say(guest, "Go on")
    page.wait_for_selector(".message.streaming")
    expect(page.locator(".message.agent p").last).to_have_text("Good day, ")
    page.click("#send")
    expect(page.locator(".message.agent footer").last).to_contain_text("stopped")
    assert said(guest) == ["Hello!", "Nothing was said.", "Go on", "Good day,"]
    assert page.locator(".streaming, .thinking").count() == 0


def test_an_answer_is_timed(server: Server, visit: Visits) -> None:
    server.engines.thinker.tokens = [0.2, "Good ", 0.2, "day ", "to <b>you</b>."]
    guest = visit()
    page = guest.open(f"{server.address}/#chat")
    say(guest, "Hello!")
    footer = page.locator(".message.agent footer")
    expect(footer).to_contain_text("all")
    found = re.findall(r"([\d.]+) (m?s)", footer.text_content() or "")
    first, whole = (float(time) * (1 if unit == "ms" else 1000) for time, unit in found)
    assert 200 <= first < whole and whole >= 400
    assert said(guest) == ["Hello!", "Good day to <b>you</b>."], "what is said is text, and no markup"


def test_sessions_are_created_named_switched_cleared_and_deleted(server: Server, visit: Visits) -> None:
    server.engines.thinker.tokens = ["Of course."]
    guest = visit()
    page = guest.open(f"{server.address}/#chat")
    say(guest, "first")
    expect(page.locator(".message.agent footer")).to_contain_text("all")
    page.click("#session-name")
    page.fill("#rename-value", "Plans & <i>dreams</i>")
    page.press("#rename-value", "Enter")
    expect(page.locator("#session-name")).to_have_text("Plans & <i>dreams</i>")
    page.click("#session-new")
    expect(page.locator("#messages .message")).to_have_count(0)
    assert names(guest) == ["Chat 2", "Plans & <i>dreams</i>"]
    say(guest, "second")
    expect(page.locator(".message.agent footer")).to_contain_text("all")
    page.click("#sessions li:nth-child(2) button")
    expect(page.locator("#messages")).to_contain_text("first")
    assert said(guest) == ["first", "Of course."]
    page.reload()
    expect(page.locator("#messages")).to_contain_text("second")  # the newest, from the server's memory
    page.click("#sessions li:nth-child(2) button")
    expect(page.locator("#messages")).to_contain_text("first")
    page.click("#session-clear")
    expect(page.locator("#messages .message")).to_have_count(0)
    say(guest, "anew")
    expect(page.locator(".message.agent footer")).to_contain_text("all")
    told = [message.content for message in server.engines.thinker.asked[-1] if message.role != "system"]
    assert told == ["anew"], "what was cleared is not told to the model either"
    page.click("#session-delete")
    expect(page.locator("#messages")).to_contain_text("second")
    assert names(guest) == ["Chat 2"]


def test_somebody_else_answers(server: Server, visit: Visits) -> None:
    server.engines.thinker.tokens = ["Hm."]
    guest = visit()
    page = guest.open(f"{server.address}/#chat")
    page.select_option("#chat-persona", "sage")
    say(guest, "Who are you?")
    expect(page.locator(".message.agent footer")).to_contain_text("Sage")
    assert "Your name is Sage." in server.engines.thinker.asked[-1][0].content
    expect(page.locator("#sessions small")).to_have_text("Sage")


def test_who_answers_may_be_chosen_before_the_server_has_spoken(server: Server, visit: Visits) -> None:
    server.engines.thinker.tokens = ["Hm."]
    guest = visit()
    page = guest.page
    held: list[tuple[WebSocketRoute, str | bytes]] = []

    def hold_the_first(line: WebSocketRoute) -> None:
        to_server = line.connect_to_server()
        to_server.on_message(lambda message: line.send(message) if held else held.append((line, message)))

    page.route_web_socket(re.compile("/ws/chat"), hold_the_first)
    guest.open(f"{server.address}/#chat")
    page.wait_for_selector("#chat-persona option[value=sage]", state="attached")
    while not held:
        page.wait_for_timeout(10)
    page.select_option("#chat-persona", "sage")
    line, greeting = held[0]
    line.send(greeting)
    say(guest, "Who are you?")
    expect(page.locator(".message.agent footer")).to_contain_text("Sage")
    assert "Your name is Sage." in server.engines.thinker.asked[-1][0].content


def test_a_mistake_is_told_and_the_chat_goes_on(server: Server, visit: Visits) -> None:
    from tests.cascade_engines import DOWN

    server.engines.thinker.tokens = [DOWN]
    guest = visit()
    page = guest.open(f"{server.address}/#chat")
    say(guest, "Hello?")
    page.wait_for_selector(".message.failed")
    assert "no chat server answers" in said(guest)[-1]
    server.engines.thinker.tokens = ["Here."]
    say(guest, "And now?")
    expect(page.locator(".message.agent footer").last).to_contain_text("all")
    assert said(guest)[-1] == "Here."
