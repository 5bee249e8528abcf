"""What docs/server.md says of HTTP, `/ws/chat` and the history is what the code does."""

from __future__ import annotations

import json
import re
from pathlib import Path

from personaplex.server.app import create_app
from personaplex.server.history import store
from personaplex.server.http import (
    bodies,
    catalogue,
    chat_socket,
    listener,
    replies,
    respond,
    shapes,
    speaker,
    turnstile,
)
from personaplex.server.realtime import items
from personaplex.server.realtime import routes as realtime
from personaplex.server.settings import ServerSettings
from tests.server.cascade import Stage, stage

__all__ = ["stage"]

PAGE = (Path(__file__).parents[2] / "docs" / "server.md").read_text()
TEXT = " ".join(PAGE.split())


def test_every_route_is_named(stage: Stage) -> None:
    described = create_app(stage.service()).openapi()["paths"]
    for path, methods in described.items():
        if not path.startswith(("/v1/", "/chat", "/personas", "/session", "/speak")):
            continue  # written by others
        named = [line for line in PAGE.splitlines() if f"{path}`" in line]
        assert named, path
        if path.startswith("/v1/history"):
            assert all(method.upper() in named[0] for method in methods), path


def test_every_field_of_respond_and_speech_is_named(stage: Stage) -> None:
    schemas = create_app(stage.service()).openapi()["components"]["schemas"]
    fields = set(schemas["Body_respond_v1_respond_post"]["properties"])
    fields |= set(schemas["Body_transcriptions_v1_audio_transcriptions_post"]["properties"])
    fields |= set(schemas["SpeechRequest"]["properties"]) | set(schemas["ChatRequest"]["properties"])
    for field in fields:
        assert f"`{field}`" in PAGE or f'"{field}"' in PAGE, field


def test_the_messages_that_are_shown_are_taken(stage: Stage) -> None:
    (shown,) = re.findall(r"The caller sends:\n\n```json\n(.*?)```", PAGE, re.DOTALL)
    told = {"message": "done", "switch_persona": "persona_switched", "reset": "reset", "ping": "pong"}
    with stage.client() as http, http.websocket_connect("ws://127.0.0.1:8998/ws/chat") as socket:
        seen = {socket.receive_json()["type"]}
        for line in shown.splitlines():
            socket.send_text(line)
            wanted = told.get(json.loads(line)["type"])
            while wanted is not None and wanted not in seen:
                seen.add(socket.receive_json()["type"])
        socket.send_text("no json")
        seen.add(socket.receive_json()["type"])
    named = set(re.findall(r"`(\w+)`", "\n".join(re.findall(r"^\| (`\w+`(?:, `\w+`)*) \| ", PAGE, re.MULTILINE))))
    assert seen <= named


def test_the_numbers_are_the_codes() -> None:
    defaults = ServerSettings()
    minute = 60 * 24_000 * 4 / (1 << 20)
    for sentence in (
        f"the last {store.MOST_SESSIONS_IN_MEMORY} sessions",
        f"in memory {store.MOST_SOUND_IN_MEMORY >> 20} MiB of it",
        f"{minute:.1f} MiB a minute, written every {store.PIECE_SECONDS:g} s",
        f"Recordings may have {respond.MOST_INPUT_SECONDS:g} s, "
        f"and `max_seconds` is {respond.MOST_TAIL_SECONDS:g} at most",
        f"JSON of {bodies.MOST_JSON_BYTES >> 20} MiB, uploads of {defaults.most_upload_bytes >> 20} MiB",
        f"texts of {shapes.MOST_CHARACTERS:,} characters",
        f"{speaker.MOST_AT_ONCE} texts spoken, {listener.MOST_AT_ONCE} recordings written down and "
        f"{respond.MOST_READ_AT_ONCE} read for `respond` at once, {turnstile.MOST_WAITING} more wait, "
        f"{turnstile.MOST_SECONDS:g} s at most",
        f"at most {store.MOST_TEXT_IN_MEMORY >> 20} Mi characters",
        f"{items.MOST_WRITTEN:,} characters in one conversation; {realtime.MOST_SESSIONS} sessions",
        f"stops coming for {bodies.STALLED_SECONDS:g} s gets 408, a reader who takes nothing for "
        f"{replies.UNREAD_SECONDS:g} s",
        f"`--resume-seconds` ({defaults.resume_seconds:g})",
        f"takes nothing for {chat_socket.UNREAD_SECONDS:g} s is disconnected",
        f"what was said (the last {chat_socket.MOST_HISTORY})",
        "`speed` (0.25 to 4, at the same pitch)",
    ):
        assert sentence in TEXT, sentence
    assert set(catalogue.OPENAI_MODELS) >= {"tts-1", "whisper-1"} and "alloy" in speaker.NOBODYS_VOICES
