"""OpenAI's audio endpoints, with OpenAI's own client, and `respond`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openai
import pytest
from fastapi.testclient import TestClient
from openai import OpenAI

from personaplex import PersonaPlex
from personaplex.audio import read_audio
from personaplex.errors import Busy, EngineError
from personaplex.report.sources import Sources
from personaplex.server.http import replies, respond, speaker, turnstile
from personaplex.server.http.turnstile import Turnstile
from personaplex.server.service import Service
from tests.cascade_engines import silence, speech
from tests.server.cascade import Shared, Stage, open_client, shared, stage, until, wav
from tests.server.conftest import serving, settings, tiny_backends

__all__ = ["shared", "stage"]

TOKEN = "a-token-of-a-test"
SAID = np.concatenate([silence(0.5), speech(1.0), silence(1.0)])


@pytest.fixture
def client(stage: Stage) -> Iterator[OpenAI]:
    with (
        serving(stage.service(settings(token=TOKEN))) as address,
        OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0) as made,
    ):
        yield made


@pytest.fixture
def http(stage: Stage) -> Iterator[TestClient]:
    with stage.client() as made:
        yield made


def test_openais_client_speaks_hears_and_lists(client: OpenAI, stage: Stage) -> None:
    spoken = client.audio.speech.create(model="tts-1", voice="alloy", input="Good day. It is noon.")
    assert spoken.response.headers["content-type"] == "audio/mpeg"
    assert len(read_audio(io.BytesIO(spoken.content))) / 24_000 == pytest.approx(1.0, abs=0.1)
    assert stage.engines.synthesiser.said == [("Good day.", None), ("It is noon.", None)]

    with client.audio.speech.with_streaming_response.create(
        model="script-voice", voice="two", input="Good day.", response_format="pcm", speed=0.5
    ) as streamed:
        assert sum(map(len, streamed.iter_bytes())) / 48_000 == pytest.approx(0.8, abs=0.1)
    assert stage.engines.synthesiser.said[-1] == ("Good day.", "two")

    stage.engines.recogniser.said = ["good day"] * 4
    recording = ("day.wav", wav(SAID))
    assert client.audio.transcriptions.create(model="whisper-1", file=recording).text == "good day"
    verbose = client.audio.transcriptions.create(
        model="whisper-1", file=recording, response_format="verbose_json", timestamp_granularities=["word", "segment"]
    )
    assert verbose.text == "good day" and verbose.duration == 2.5
    assert verbose.segments is not None and verbose.segments[0].text == "good day" and verbose.words == []
    assert 0 <= verbose.segments[0].start < 0.6 < verbose.segments[0].end < 2.5
    subtitles = client.audio.transcriptions.create(model="whisper-1", file=recording, response_format="srt")
    assert "-->" in str(subtitles) and "good day" in str(subtitles)
    deltas = client.audio.transcriptions.create(model="whisper-1", file=recording, stream=True)
    assert [one.type for one in deltas] == ["transcript.text.delta", "transcript.text.done"]

    assert [model.id for model in client.models.list()] == ["scripted", "script-mind", "script-ears", "script-voice"]
    assert client.models.retrieve("script-ears").owned_by == "personaplex"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")
    with pytest.raises(openai.BadRequestError, match="unknown voice"):
        client.audio.speech.create(model="tts-1", voice="../../etc/passwd", input="Good day.")
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong-wrong").models.list()


@pytest.mark.parametrize(("form", "media_type"), [("text", "text/plain"), ("vtt", "text/vtt"), ("srt", "text/plain")])
def test_transcripts_as_text(shared: Shared, form: str, media_type: str) -> None:
    shared.engines.recogniser.said = ["<script>alert(1)</script> & so on"]
    about = {"response_format": form}
    answer = shared.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(SAID))}, data=about)
    assert answer.headers["content-type"].startswith(media_type)
    escaped = "&lt;script&gt;" if form == "vtt" else "<script>"
    assert escaped in answer.text and answer.headers["x-content-type-options"] == "nosniff"
    assert answer.text.startswith("WEBVTT") == (form == "vtt")


def test_where_nobody_speaks_the_text_is_empty(shared: Shared) -> None:
    answer = shared.http.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(silence(1.0)))})
    assert answer.json() == {"text": ""}


@pytest.mark.parametrize(
    ("file", "about", "code"),
    [
        (b"this is no sound", {}, "unusable_audio"),
        (b"", {}, "unusable_audio"),
        (wav(SAID)[:1000], {}, "unusable_audio"),
        (b"ffconcat version 1.0\nfile pyproject.toml\n", {}, "unusable_audio"),
        (wav(SAID), {"language": "tlh"}, "invalid_value"),
        (wav(SAID), {"language": "../en"}, "invalid_value"),
        (wav(SAID), {"model": "../../model"}, "not_found"),
        (wav(SAID), {"model": "script-voice"}, "not_found"),
        (wav(SAID), {"response_format": "docx"}, "invalid_value"),
        (wav(SAID), {"temperature": "nan"}, "invalid_value"),
        (wav(SAID), {"stream": "perhaps"}, "invalid_value"),
    ],
)
def test_recordings_and_wishes_that_cannot_be_used(
    shared: Shared, file: bytes, about: dict[str, str], code: str
) -> None:
    refused = shared.http.post("/v1/audio/transcriptions", files={"file": ("../../a.wav", file)}, data=about)
    assert refused.status_code in (400, 404) and refused.json()["error"]["code"] == code
    assert shared.engines.recogniser.n_open == 0


def test_a_recogniser_that_fails_is_told(http: TestClient, stage: Stage) -> None:
    for stream in ("false", "true"):
        stage.engines.recogniser.said = [EngineError("it broke")]
        about = {"stream": stream}
        failed = http.post("/v1/audio/transcriptions", files={"file": ("a.wav", wav(SAID))}, data=about)
        assert failed.status_code == 502 and failed.json()["error"]["message"] == "it broke"


@pytest.mark.parametrize(
    "about",
    [
        {"speed": 0.1},
        {"speed": 5},
        {"speed": "fast"},
        {"response_format": "midi"},
        {"input": " "},
        {"input": "x" * 20_001},
        {"input": "..."},
        {"voice": 7},
        {"voice": {"id": ""}},
        {"voice": "one.pt"},
        {"language": "tlh"},
        {"stream_format": "video"},
    ],
)
def test_speech_that_cannot_be_made(shared: Shared, about: dict[str, object]) -> None:
    n_said = len(shared.engines.synthesiser.said)
    refused = shared.http.post("/v1/audio/speech", json={"model": "tts-1", "voice": "one", "input": "Hello", **about})
    assert refused.status_code == 400, refused.text
    assert len(shared.engines.synthesiser.said) == n_said


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_none(shared: Shared, number: str) -> None:
    refused = shared.http.post(
        "/v1/audio/speech",
        content=f'{{"input": "Hello", "voice": "one", "speed": {number}}}',
        headers={"content-type": "application/json"},
    )
    assert refused.status_code == 400 and refused.json()["error"]["param"] == "speed"


def test_a_persona_is_a_voice_and_a_voice_may_be_an_object(http: TestClient, stage: Stage) -> None:
    for voice in ("sage", {"id": "two"}, None, ""):
        about = {"input": "Hello", "voice": voice, "response_format": "wav"}
        assert http.post("/v1/audio/speech", json=about).status_code == 200
    assert [voice for _, voice in stage.engines.synthesiser.said] == [None, "two", None, None]


def test_speech_as_events(shared: Shared) -> None:
    about = {"input": "Good day. It is noon.", "voice": "one", "response_format": "wav", "stream_format": "sse"}
    answer = shared.http.post("/v1/audio/speech", json=about)
    found = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: ")]
    assert {one["type"] for one in found[:-1]} == {"speech.audio.delta"} and found[-1]["type"] == "speech.audio.done"
    data = b"".join(base64.b64decode(one["audio"]) for one in found[:-1])
    assert len(read_audio(io.BytesIO(data))) / 24_000 == pytest.approx(1.0, abs=0.01)


def test_who_hangs_up_stops_the_synthesiser(stage: Stage) -> None:
    from urllib.request import Request, urlopen

    stage.engines.synthesiser.seconds_per_word = 0.01
    with serving(stage.service()) as address:
        about = json.dumps({"input": "word " * 3000, "voice": "one", "response_format": "pcm"}).encode()
        asking = Request(f"{address}/v1/audio/speech", about, {"content-type": "application/json"}, method="POST")
        with urlopen(asking) as answer:
            assert answer.read(1000)
    said = len(stage.engines.synthesiser.said)
    assert stage.engines.synthesiser.n_open == 0 and said < 100


def test_who_reads_nothing_is_dropped(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    monkeypatch.setattr(replies, "UNREAD_SECONDS", 0.2)
    service = stage.service()
    with serving(service) as address:
        host, _, port = address.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as stuck:
            stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            about = json.dumps({"input": "word " * 3900, "voice": "one", "response_format": "pcm", "speed": 0.25})
            head = f"POST /v1/audio/speech HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
            stuck.sendall(f"{head}content-length: {len(about)}\r\n\r\n{about}".encode())
            until(lambda: service.metrics.slow_readers._value.get() == 1)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_so_many_at_once_a_few_wait_and_the_rest_are_refused() -> None:
    one = Turnstile(1, queue=0)
    async with one:
        with pytest.raises(Busy):
            await one.__aenter__()
    async with one:
        pass


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_nobody_waits_for_ever_and_whoever_gave_up_takes_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turnstile, "MOST_SECONDS", 0.01)
    few = Turnstile(1, queue=1)
    for _ in range(3):
        async with few:
            for _ in range(3):
                with pytest.raises(Busy):
                    await few.__aenter__()


def test_the_speaker_refuses_who_is_too_many(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speaker, "MOST_AT_ONCE", 0)
    monkeypatch.setattr(Turnstile.__init__, "__defaults__", (0,))
    with stage.client() as http:
        refused = http.post("/v1/audio/speech", json={"input": "Hello", "voice": "one"})
        assert refused.status_code == 429 and refused.headers["retry-after"]


def test_nothing_is_begun_when_the_server_is_about_to_stop(stage: Stage) -> None:
    service = stage.service()
    with open_client(service) as http:
        assert http.post("/v1/audio/speech", json={"input": "Hello", "voice": "one"}).status_code == 200
        service.begin_drain()
        for refused in (
            http.post("/v1/audio/speech", json={"input": "Hello", "voice": "one"}),
            http.post("/v1/audio/transcriptions", files={"file": ("day.wav", wav(SAID))}, data={"model": "whisper-1"}),
        ):
            assert refused.status_code == 503 and "about to stop" in refused.json()["error"]["message"]
            assert refused.headers["retry-after"]


def test_readers_who_take_their_time_hold_nobody_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file is made ahead of its reader: the synthesiser's place is free when it is made, not when it is read."""
    text = "Good day. It is noon. The sun is out. Come in."
    monkeypatch.setattr(speaker, "MOST_READERS", speaker.MOST_AT_ONCE + 1)

    async def read() -> None:
        aloud = speaker.Speaker(stage.service())
        plan = aloud.plan("one")
        slow = [aloud.read(text, plan, "wav") for _ in range(speaker.MOST_AT_ONCE)]
        for reader in slow:
            assert await anext(reader)
        assert b"".join([piece async for piece in aloud.read(text, plan, "wav")])[:4] == b"RIFF"
        one_more = aloud.read(text, plan, "wav")
        assert await asyncio.wait_for(anext(one_more), 5)
        with pytest.raises(Busy):
            await anext(aloud.read(text, plan, "wav"))
        for reader in [*slow, one_more]:
            await reader.aclose()
        assert b"".join([piece async for piece in aloud.read(text, plan, "wav")]), "who has gone makes room"
        assert aloud._ahead == 0
        monkeypatch.setattr(speaker, "MOST_AHEAD", 0)  # one piece may be ahead: a reader still gets all of it
        assert len(b"".join([piece async for piece in aloud.read(text, plan, "pcm")])) > 20_000

    asyncio.run(asyncio.wait_for(read(), 20))


def test_voices_of_both_kinds(shared: Shared) -> None:
    found = shared.http.get("/v1/voices").json()
    assert found["voices"] == ["NATF0", "NATM1", "one", "two"]
    assert [(voice["id"], voice["mode"]) for voice in found["data"]] == [
        ("NATF0", "duplex"),
        ("NATM1", "duplex"),
        ("one", "cascade"),
        ("two", "cascade"),
    ]


# respond


def test_respond_gives_the_agents_side_of_the_call(http: TestClient) -> None:
    """The scripted agent gives the user's sound back, so the answer begins with the recording."""
    answer = http.post("/v1/respond", files={"file": ("question.wav", wav(SAID))})
    assert answer.headers["content-type"] == "audio/wav"
    found = read_audio(io.BytesIO(answer.content))
    assert np.abs(found[: len(SAID)] - SAID).max() < 1e-3
    assert len(found) > len(SAID) and not found[len(SAID) :].any()
    about = http.post(
        "/v1/respond", files={"file": ("q.wav", wav(SAID))}, data={"response_format": "json", "seed": "7"}
    )
    found_about = about.json()
    assert found_about["text"] == "hello there" and found_about["seed"] == 7 and found_about["stopped"] == "silence"
    assert found_about["input_seconds"] == 2.5 and found_about["output_seconds"] == len(found) / 24_000
    assert base64.b64decode(found_about["audio"]) == answer.content
    streamed = http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}, data={"response_format": "stream"})
    assert streamed.content[44:] == answer.content[44:]
    said = http.get(f"/v1/history/{found_about['session_id']}").json()
    assert [turn["content"] for turn in said["messages"]] == ["hello there"]
    assert said["session"]["kind"] == "respond" and said["session"]["recorded_seconds"] == 0


def test_respond_goes_on_as_long_as_it_may(http: TestClient) -> None:
    for seconds, frames in (("0", 32), ("0.8", 42)):
        about = http.post(
            "/v1/respond",
            files={"file": ("q.wav", wav(SAID))},
            data={"response_format": "json", "max_seconds": seconds},
        ).json()
        assert about["stopped"] == "limit" and about["output_seconds"] == pytest.approx(frames * 0.08)


def test_few_recordings_are_read_at_once_for_those_who_have_no_slot(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, at_once, most = threading.Lock(), 0, 0
    gate = threading.Barrier(respond.MOST_READ_AT_ONCE)

    def read(*_: object) -> np.ndarray:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        gate.wait(10)  # as many as may are inside, and would find out who else is
        with lock:
            at_once -= 1
        return SAID

    monkeypatch.setattr(respond, "read_audio", read)
    with stage.client(slots=6) as http, ThreadPoolExecutor(6) as callers:
        asked = [callers.submit(http.post, "/v1/respond", files={"file": ("q.wav", b"x")}) for _ in range(6)]
        assert [answer.result().status_code for answer in asked] == [200] * 6
    assert most == respond.MOST_READ_AT_ONCE


def test_respond_keeps_the_sound_where_that_is_asked_for(http: TestClient) -> None:
    answer = http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}, data={"record": "true"})
    id = answer.headers["x-session-id"]
    export = http.get(f"/v1/history/{id}/export?format=wav")
    assert export.headers["content-type"] == "audio/wav" and f'"{id}.wav"' in export.headers["content-disposition"]
    stereo = np.frombuffer(export.content[44:], "<i2").reshape(-1, 2)
    assert int.from_bytes(export.content[40:44], "little") == 4 * len(stereo)
    assert stereo[:, 0].tobytes() == answer.content[44:]  # the agent
    user = np.frombuffer(wav(SAID)[44:], "<i2")
    assert np.array_equal(stereo[: len(user), 1], user) and not stereo[len(user) :, 1].any()


def test_what_was_kept_can_be_reported(http: TestClient, tmp_path: Path) -> None:
    """A session's two exports, under the names that the server gives them, are a conversation to `report`."""
    id = http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}, data={"record": "true"}).headers["x-session-id"]
    for form in ("json", "wav"):
        export = http.get(f"/v1/history/{id}/export?format={form}")
        name = export.headers["content-disposition"].split('"')[1]
        (tmp_path / name).write_bytes(export.content)
    sources = Sources()
    sources.read([tmp_path], None)
    (one,) = sources.conversations
    assert (one.source, one.name, one.text, sources.failures) == ("serve", id, "hello there", [])
    assert np.abs(one.user[: len(SAID)] - SAID).max() < 1e-3 and one.about["kind"] == "respond"
    assert 0 <= one.said[0].at < one.seconds


def test_respond_by_the_cascade_hears_answers_and_says(http: TestClient, stage: Stage) -> None:
    stage.engines.recogniser.said = ["what time is it"]
    about = http.post(
        "/v1/respond",
        files={"file": ("q.wav", wav(SAID))},
        data={"response_format": "json", "mode": "cascade", "persona": "sage", "voice": "two"},
    ).json()
    assert about["heard"] == "what time is it" and about["text"] == "Good day. It is noon."
    assert about["output_seconds"] == pytest.approx(1.0, abs=0.01) and about["persona"] == "sage"
    assert stage.engines.synthesiser.said[-1] == ("It is noon.", "two")
    assert [message.content for message in stage.engines.thinker.asked[0]][1:] == ["what time is it"]
    refused = http.post("/v1/respond", files={"file": ("q.wav", wav(silence(1.0)))}, data={"mode": "cascade"})
    assert refused.status_code == 400 and "nobody is heard" in refused.json()["error"]["message"]
    refused = http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}, data={"mode": "cascade", "seed": "1"})
    assert refused.status_code == 400


@pytest.mark.parametrize(
    "about",
    [
        {"voice": "../../etc/passwd"},
        {"voice": "/etc/passwd"},
        {"voice": "NATF0/../NATM1"},
        {"persona": "nobody"},
        {"mode": "telepathy"},
        {"max_seconds": "nan"},
        {"max_seconds": "inf"},
        {"max_seconds": "-1"},
        {"max_seconds": "1e9"},
        {"seed": "-1"},
        {"seed": str(1 << 40)},
        {"response_format": "mp3"},
    ],
)
def test_respond_refuses_what_there_is_not(shared: Shared, about: dict[str, str]) -> None:
    refused = shared.http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}, data=about)
    assert refused.status_code == 400, refused.text


def test_respond_takes_a_slot_and_gives_it_back(stage: Stage) -> None:
    service = stage.service(slots=1)
    with open_client(service) as http:
        taken = service.open("duplex", service.choose(), client="test")
        refused = http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))})
        assert refused.status_code == 429 and "1 of 1" in refused.json()["error"]["message"]
        taken.close()
        for _ in range(3):
            assert http.post("/v1/respond", files={"file": ("q.wav", wav(SAID))}).status_code == 200
        http.post("/v1/respond", files={"file": ("q.wav", b"no sound")})
        assert service.in_use() == 0


def test_respond_with_the_tiny_model_is_what_the_library_answers(model: PersonaPlex, tmp_path: Path) -> None:
    """The same recording, voice, role and seed: sample for sample."""
    question = tmp_path / "question.wav"
    question.write_bytes(wav(speech(0.8)))
    service = Service.of(tiny_backends(1), settings())
    with open_client(service) as http:
        about = http.post(
            "/v1/respond",
            files={"file": ("q.wav", question.read_bytes())},
            data={"response_format": "json", "seed": "7", "max_seconds": "0.8", "voice": "VOICE0", "prompt": "Hi."},
        ).json()
    sampling = model.sampling(**service.persona().sampling)
    reply = model.respond(question, voice="VOICE0", prompt="Hi.", seed=7, max_seconds=0.8, sampling=sampling)
    assert base64.b64decode(about["audio"]) == wav(reply.audio)
    assert about["text"] == reply.text and about["voice"] == "VOICE0" and about["persona"] == "assistant"
