"""`/api/chat` over a real socket, on a scripted backend: order and bytes of messages, and every way a call ends."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from starlette.datastructures import QueryParams
from websockets.exceptions import ConnectionClosed, InvalidStatus

from personaplex.conversation import AgentText, Error, Settings
from personaplex.engine.sampling import Sampling
from personaplex.errors import AudioError, BackendError, PersonaError, PersonaPlexError
from personaplex.server import socket_protocol
from personaplex.server.moshi import ear
from personaplex.server.moshi.ogg import Pages
from personaplex.server.moshi.opus import OpusWriter
from personaplex.server.moshi.query import SAMPLING, read_query
from personaplex.server.refusals import refusal
from personaplex.server.service import Backends, Service
from tests.contract.scripted import Scripted, ScriptedConversation
from tests.server.conftest import ABLE, scripted_backends, serving, settings
from tests.server.moshi.caller import calling

SOUND = (0.3 * np.sin(np.arange(1920 * 6) ** 1.5 / 4000)).astype(np.float32)


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    made = Service.of(scripted_backends(slots=2), settings(unsent_seconds=1.0))
    yield made
    made.close()


@pytest.fixture(scope="module")
def server(service: Service) -> Iterator[str]:
    with serving(service) as address:
        yield address


@pytest.fixture(autouse=True)
def _no_slot_leaks(service: Service) -> Iterator[None]:
    """Whatever a test does to a call, its slot comes back."""
    yield
    until = time.monotonic() + 10
    while service.in_use():
        assert time.monotonic() < until, "a slot leaked"
        time.sleep(0.01)


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def asked(service: Service, query: str) -> Settings:
    return read_query(QueryParams(query), service)


def test_handshake_then_the_two_head_pages_then_a_packet_a_frame_silence_too(server: str) -> None:
    with calling(server, "voice_prompt=NATF0.pt&text_prompt=You%20enjoy%20having%20a%20good%20conversation.") as call:
        assert call.next() == b"\x00", "NVIDIA's server sends the bare byte"
        assert [call.next(), call.next()] == [b"\x01" + page for page in OpusWriter().head()]
        call.converse(np.zeros(1920 * 6, np.float32))
        kinds = [message[0] for message in call.received[3:]]
        assert kinds == [1, 2, 1, 1, 1, 1, 1] + [2] * (len(kinds) - 7), kinds
        pages = [next(Pages().push(message[1:])) for message in call.received[3:] if message[0] == 1]
        assert [page.sequence for page in pages] == [2, 3, 4, 5, 6, 7], "one page, with one packet, a message"
        assert call.text.startswith("hello ")


def test_without_parameters_it_is_the_default_persona(server: str, service: Service) -> None:
    """Kyutai's client names nothing."""
    with calling(server) as call:
        assert call.next() == b"\x00"
    assert asked(service, "") == service.choose()


def test_what_the_address_asks_for_is_what_the_backend_is_told(service: Service) -> None:
    full = asked(
        service,
        "voice_prompt=NATM1.pt&text_prompt=You+are+Jo.&seed=7&text_temperature=0.5&text_topk=10&audio_temperature=0.9"
        "&audio_topk=100&repetition_penalty=1.1&pad_mult=0&text_seed=3&audio_seed=4&repetition_penalty_context=64"
        "&worker_auth_id=x&email=y",
    )
    assert full == Settings(
        "NATM1", "You are Jo.", 7,
        {"text_temperature": 0.5, "text_top_k": 10, "audio_temperature": 0.9, "audio_top_k": 100,
         "repetition_penalty": 1.1},
    )  # fmt: skip
    assert asked(service, "voice_prompt=NATM1") == asked(service, "voice_prompt=NATM1.pt")
    assert asked(service, "voice_prompt=NATM1&text_prompt=").prompt == "", "an empty role is none"
    assert asked(service, "seed=-1").seed is None
    assert asked(service, "seed=1&seed=2").seed == 1


NAMES = st.sampled_from(["voice_prompt", "text_prompt", "seed", *SAMPLING, "pad_mult", ""])
VALUES = st.text(max_size=20) | st.sampled_from(["1", "0.5", "-1", "nan", "1e999", "NATF0.pt", "../NATF0", "٣", "1_0"])


@given(st.lists(st.tuples(NAMES, VALUES), max_size=6))
@settings_of_hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)
def test_any_parameters_are_settings_that_the_engine_takes_or_an_error(
    service: Service, pairs: list[tuple[str, str]]
) -> None:
    try:
        found = read_query(QueryParams(pairs), service)
    except PersonaPlexError as error:
        assert refusal(error).close_code == 1008
        return
    assert found.voice in (None, "", "NATF0", "NATM1")
    assert found.seed is None or 0 <= found.seed < 1 << 63
    Sampling(**(found.sampling or {}))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ("voice_prompt=../../etc/passwd", "unknown voice"),
        ("voice_prompt=/etc/passwd.pt", "unknown voice"),
        ("voice_prompt=NATF9.pt", "there are NATF0, NATM1"),
        ("voice_prompt=%00", "unknown voice"),
        ("seed=x", "seed is 'x'; expected a whole number"),
        ("seed=-2", "seed is -2"),
        ("seed=" + "9" * 5000, "seed is"),
        ("text_temperature=hot", "text_temperature is 'hot'; expected a number"),
        ("text_temperature=nan", "text temperature is nan"),
        ("audio_temperature=inf", "audio temperature is inf"),
        ("audio_topk=-1", "audio top k is -1"),
        ("text_topk=2.5", "expected a whole number"),
        ("repetition_penalty=0", "repetition penalty is 0"),
    ],
)
def test_what_cannot_be_is_an_error_message_and_a_close_code(
    server: str, service: Service, query: str, told: str
) -> None:
    def refused() -> float:
        return sum(sample.value for metric in service.metrics.refusals.collect() for sample in metric.samples)

    before = refused()
    with calling(server, query) as call:
        code, reason = call.end()
        assert code == 1008 and told in call.errors[0] and reason and call.errors[0].startswith(reason)
        assert [message[0] for message in call.received] == [5], "no handshake"
    assert refused() > before


def test_a_long_role_in_an_address_is_read_and_one_that_is_too_long_is_refused(server: str, service: Service) -> None:
    """NVIDIA's page takes 1000 characters, which may be twelve bytes each in an address."""
    role = "\N{SLIGHTLY SMILING FACE}" * 1000
    with calling(server, {"text_prompt": role}) as call:
        assert call.next() == b"\x00"
    for longer in (6000, 100_000):
        with pytest.raises(InvalidStatus) as refused, calling(server, {"text_prompt": role * (longer // 1000)}):
            pass
        assert refused.value.response.status_code == 400


def test_a_handshake_that_cannot_be_read_is_answered(server: str) -> None:
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 5) as raw:
        many = "".join(f"x-{i}: y\r\n" for i in range(200))  # more headers than the WebSockets package takes
        upgrade = f"GET /api/chat HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        raw.sendall(f"{upgrade}{many}\r\n".encode())
        assert raw.recv(100).startswith(b"HTTP/1.1 400")


def test_who_never_says_what_they_want_is_disconnected(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that never ends holds no connection, and one that is answered or became a call is left alone."""
    monkeypatch.setattr(socket_protocol, "HEAD_SECONDS", 0.3)
    host, port = server.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 10) as raw, calling(server) as call:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: ")
        assert raw.recv(100) == b""
        call.converse(SOUND)


def test_one_caller_too_many_is_told_so(server: str) -> None:
    with calling(server) as first, calling(server) as second:
        assert first.next() == second.next() == b"\x00"
        with calling(server) as third:
            assert third.end()[0] == 1013
            assert (
                third.errors == ["all slots are taken: 2 of 2 in use; try again when a conversation has ended"]
                and len(third.received) == 1
            )
        second.converse(SOUND)


def test_what_cannot_be_understood_is_ignored_and_the_call_goes_on(server: str) -> None:
    with calling(server) as call:
        call.until(0)
        call.socket.send("text, not binary")
        call.socket.send(b"")
        for message in (
            b"\x00",
            b"\x00\x00\x00\x00\x00\x00\x00\x00\x00",
            b"\x03\x00",
            b"\x03\x07",
            b"\x04{}",
            b"\x05no",
            b"\x06",
            b"\x07",
            b"\xff" * 100,
            b"\x01",
        ):
            call.socket.send(message)
        for _ in range(10_000):
            call.socket.send(b"\x06")
        call.converse(SOUND)
        assert not call.errors


def test_typed_text_is_the_agents_to_say_and_the_history_has_both(server: str, service: Service) -> None:
    with calling(server) as call:
        call.until(0)
        call.socket.send("\x02grüß Gott".encode())
        call.converse(np.tile(SOUND, 4))
        assert call.text == "hello there grüß Gott "
        call.socket.send(b"\x02\xff\xfe")
        assert call.until(5)[1:] == b"the text is not UTF-8"
        call.socket.send(b"\x02" + b"a" * 2001)
        assert b"at most 2000" in call.until(5)
        call.converse(SOUND)

    async def written() -> list[list[tuple[str, str]]]:
        sessions = await service.history.list(1, kind="moshi")
        return [[(turn.role, turn.text) for turn in await service.history.turns(session.id)] for session in sessions]

    said = [("user", "grüß Gott"), ("assistant", "hello there grüß Gott")]
    until = time.monotonic() + 5
    while asyncio.run(written()) != [said]:
        assert time.monotonic() < until, asyncio.run(written())


@pytest.mark.parametrize(
    ("message", "told"),
    [
        (b"\x01RIFF....WAVEfmt ", "not Ogg"),
        (b"\x01" + OpusWriter().head()[0][:-1] + b"\x01", "checksum is wrong"),
        (b"\x01" + OpusWriter().head()[1], "OpusHead"),
    ],
)
def test_malformed_sound_ends_the_call_in_words_and_nobody_elses(server: str, message: bytes, told: str) -> None:
    with calling(server) as bystander, calling(server) as call:
        bystander.until(0)
        call.socket.send(message)
        assert call.end()[0] == 1007
        assert told in call.errors[0]
        bystander.converse(SOUND)


def test_a_message_that_is_too_long_ends_the_call(server: str) -> None:
    with calling(server) as call:
        call.socket.send(b"\x01" + bytes(1 << 16))
        assert call.end()[0] == 1009
    with calling(server) as call, pytest.raises(ConnectionClosed):
        call.socket.send(b"\x01" + bytes(2 << 20))
        call.end()
        raise ConnectionClosed(None, None)


def test_a_recording_that_is_sent_at_once_is_heard_whole(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender waits when too much waits; nothing of it is shed."""
    monkeypatch.setattr(ear, "MOST_WAITING_SECONDS", 0.5)
    monkeypatch.setattr(ear, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(ear, "LATE_SECONDS", 0.0)
    with calling(server) as call:
        call.until(0)
        call.say(np.tile(SOUND, 10))
        call.hear(60)


class Late(Scripted):
    """Its conversation says that it is ready when `ready` is called."""

    def __init__(self) -> None:
        super().__init__(1, capabilities=ABLE)
        self.came = threading.Event()

    def open(self, settings: Settings = Settings()) -> ScriptedConversation:  # noqa: B008
        self.opened = super().open(settings)
        self.held = self.opened._mailbox.get()
        self.most, self.n = 0, 0
        hear = self.opened._hear

        def count(frame: np.ndarray) -> None:
            self.n += 1
            hear(frame)

        self.opened._hear = count  # type: ignore[method-assign]
        self.came.set()
        return self.opened

    def ready(self) -> None:
        assert self.came.wait(5) and self.held is not None
        self.opened._mailbox.put(self.held)


@pytest.fixture
def late() -> Iterator[tuple[Late, str]]:
    backend = Late()
    service = Service.of(
        Backends("late", backend, slots={"duplex": 1}, close=backend.close), settings(idle_seconds=0.5)
    )
    with serving(service) as address:
        yield backend, address


def test_sound_from_before_the_handshake_is_kept_and_heard(late: tuple[Late, str]) -> None:
    backend, address = late
    with calling(address) as early:
        early.say(np.tile(SOUND, 3))  # 18 frames: more than a conversation lets wait
        early.socket.ping().wait(5)  # all of it has arrived
        assert backend.n == 0
        page = get(f"{address}/metrics")
        assert 'personaplex_queue_frames{of="sum"} 18.0' in page, page
        backend.ready()
        assert early.next() == b"\x00", "nothing goes out before the handshake"
        early.hear(18)
        early.converse(SOUND)
        assert backend.n == 24


def test_more_than_a_minute_before_the_handshake_is_refused(
    late: tuple[Late, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ear, "MOST_WAITING_SECONDS", 0.4)
    with calling(late[1]) as early:
        early.say(SOUND)
        assert early.end()[0] == 1008 and "before the conversation could begin" in early.errors[0]


def test_who_hangs_up_before_the_handshake_frees_the_slot(late: tuple[Late, str]) -> None:
    backend, address = late
    with calling(address):
        pass
    until = time.monotonic() + 5
    while not backend.opened.ended:
        assert time.monotonic() < until
        time.sleep(0.01)


def test_who_sends_nothing_for_long_is_let_go(late: tuple[Late, str]) -> None:
    with calling(late[1]) as call:
        late[0].ready()
        assert call.end()[0] == 1008 and call.errors == ["nothing came for 0.5 s; call again"]


def test_what_goes_wrong_in_the_conversation_is_told(late: tuple[Late, str]) -> None:
    for error, code in ((PersonaError("the role is too long"), 1008), (BackendError("not finite"), 1011)):
        with calling(late[1]) as call:
            assert late[0].came.wait(5)
            late[0].came.clear()
            late[0].opened._mailbox.put(Error(0, error))
            late[0].opened.end("error")
            assert call.end() == (code, str(error))
            assert call.errors == [str(error)]


def test_a_mistake_of_ours_tells_nothing_of_our_insides(
    late: tuple[Late, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("secret detail")

    with calling(late[1]) as call:
        late[0].ready()
        call.until(0)
        monkeypatch.setattr(late[0].opened, "send", fail)
        call.say(SOUND[:1920])
        code, reason = call.end()
        assert code == 1011 and "secret" not in reason + call.errors[0] and "log" in call.errors[0]


def test_a_slow_reader_is_given_up_and_blocks_nobody(server: str, service: Service) -> None:
    """It says much and takes nothing: its answers stop at what the sockets hold, and after a second it is cut."""

    def cut() -> float:
        return service.metrics.registry.get_sample_value("personaplex_slow_readers_total") or 0.0

    before = cut()
    address = server.removeprefix("http://").split(":")
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    raw.connect((address[0], int(address[1])))
    with calling(server, sock=raw, max_queue=1) as slow:
        slow.until(0)
        (conversation,) = (c for c in service.backends.duplex._open if not c.ended)  # type: ignore[union-attr]
        for _ in range(400):
            conversation._mailbox.put(AgentText(0, "x" * 30_000))
        with calling(server) as other:
            other.converse(SOUND)
            until = time.monotonic() + 10
            while cut() == before:
                assert time.monotonic() < until
                time.sleep(0.02)
            other.converse(SOUND)


def test_the_token_and_foreign_pages_are_seen_to_before_the_upgrade(scripted_service: Callable[..., Service]) -> None:
    token = "a-good-long-token"
    with serving(scripted_service(settings=settings(token=token))) as address:
        with pytest.raises(InvalidStatus) as refused, calling(address):
            pass
        assert refused.value.response.status_code == 401 and b"invalid_api_key" in (refused.value.response.body or b"")
        with pytest.raises(InvalidStatus) as refused, calling(address, f"token={token}", origin="https://evil.example"):
            pass
        assert refused.value.response.status_code == 403
        with calling(address, f"voice_prompt=NATF0&token={token}") as call:
            assert call.next() == b"\x00"
        with calling(address, additional_headers={"Authorization": f"Bearer {token}"}) as call:
            assert call.next() == b"\x00"


def test_who_calls_while_the_model_is_loaded_is_told_so() -> None:
    go = threading.Event()

    def load() -> Backends:
        assert go.wait(20)
        return scripted_backends()

    with serving(Service(settings(), load)) as address:
        with calling(address) as early:
            assert early.end()[0] == 1013
            assert early.errors == ["the server is loading its model; try again in a moment"]
        go.set()
        until = time.monotonic() + 10
        while True:
            with calling(address) as call:
                if call.next() == b"\x00":
                    break
            assert time.monotonic() < until


def test_a_peer_that_is_dead_but_connected_loses_its_slot(scripted_service: Callable[..., Service]) -> None:
    """It shook hands and then answers nothing, not even pings, as when a laptop is shut."""
    service = scripted_service(slots=1, settings=settings(silent_seconds=0.4))
    with serving(service) as address:
        host, port = address.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as dead:
            dead.sendall(
                f"GET /api/chat HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
            )
            assert dead.recv(12) == b"HTTP/1.1 101"
            until = time.monotonic() + 10
            while not service.in_use():
                assert time.monotonic() < until
            while service.in_use():
                assert time.monotonic() < until
                time.sleep(0.02)
        with calling(address) as call:
            call.converse(SOUND)


@given(
    st.lists(st.binary(max_size=60) | st.sampled_from([b"\x01" + page for page in OpusWriter().head()]), max_size=12)
)
@settings_of_hypothesis(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
def test_any_messages_at_all_leave_the_server_as_it_was(server: str, messages: list[bytes]) -> None:
    """They are ignored, or end the call with an error and a code that says why."""
    with calling(server) as call:
        try:
            for message in messages:
                call.socket.send(message)
            call.socket.send(b"\x02over")
            while not call.text.endswith("over "):
                call.say(SOUND[:1920])
                call.hear(1)
        except (ConnectionClosed, AudioError):
            code, reason = call.end()
            assert code in (1007, 1008) and reason and call.errors
    with calling(server) as call:
        call.converse(SOUND[:1920])


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="open files are counted in /proc, on Linux")
def test_nothing_is_left_of_callers_who_leave_in_any_way(server: str, service: Service) -> None:
    """Neither sockets nor slots, after calls that were ended, cut off, refused, or never begun."""
    host, port = server.removeprefix("http://").split(":")

    def leave(how: int) -> None:
        if how == 0:
            with calling(server) as call:
                call.converse(SOUND[:1920])
        elif how == 1:
            with calling(server) as call:
                call.until(0)
                call.socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                call.socket.socket.close()  # a reset
        elif how == 2:
            with calling(server, "seed=x") as call:
                call.end()
        else:
            with socket.create_connection((host, int(port))) as raw:
                raw.sendall(b"GET /api/chat HTTP/1.1\r\nHost: x\r\nUpgrade: webso")

    def n_open() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    for how in range(4):
        leave(how)
    until, before = time.monotonic() + 15, n_open()
    for n in range(40):
        leave(n % 4)
    while service.in_use() or n_open() > before + 2:
        assert time.monotonic() < until, (service.in_use(), n_open(), before)
        time.sleep(0.05)


def test_a_server_that_stops_lets_callers_end_and_tells_those_who_do_not(
    scripted_service: Callable[..., Service],
) -> None:
    service = scripted_service(settings=settings(drain_seconds=0.5))
    with serving(service) as address, calling(address) as call:
        call.until(0)
        service.begin_drain()
        with calling(address) as late:
            assert late.end()[0] == 1013 and "about to stop" in late.errors[0]
        call.converse(SOUND)
        service.close()
        assert call.end()[0] == 1013 and "about to stop" in call.errors[0]
