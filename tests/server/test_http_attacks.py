"""More than a server should take, and slower: over real sockets, while another caller is served."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.request import Request, urlopen

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from personaplex.server import socket_protocol
from personaplex.server.http import bodies
from tests.server.cascade import Stage, stage
from tests.server.conftest import serving, settings

__all__ = ["stage"]


@contextmanager
def line(address: str) -> Iterator[socket.socket]:
    host, _, port = address.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as opened:
        yield opened


def answer(opened: socket.socket) -> tuple[int, bytes]:
    """The status, and all that comes until the server hangs up."""
    data = b""
    try:
        while piece := opened.recv(1 << 16):
            data += piece
    except ConnectionResetError:  # it hung up on what we still sent
        pass
    return int(data.split(b" ", 2)[1]), data


def head(path: str, **more: object) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "host: 127.0.0.1", *(f"{n.replace('_', '-')}: {v}" for n, v in more.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def chats(address: str) -> bool:
    asking = Request(f"{address}/chat", b'{"message": "Hello"}', {"content-type": "application/json"}, method="POST")
    with urlopen(asking) as found:
        return bool(json.load(found)["response"])


GIGABYTE = 1 << 30


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/respond", "/chat", "/v1/audio/speech"])
def test_a_gigabyte_is_refused_before_it_is_sent(stage: Stage, path: str) -> None:
    kind = "application/json" if path in ("/chat", "/v1/audio/speech") else "multipart/form-data; boundary=x"
    with serving(stage.service()) as address, line(address) as opened:
        began = time.monotonic()
        opened.sendall(head(path, content_type=kind, content_length=GIGABYTE))
        status, data = answer(opened)
        assert status == 413 and b"too_large" in data and time.monotonic() - began < 5
        assert chats(address)


def test_a_gigabyte_that_does_not_say_so_is_cut_off(stage: Stage) -> None:
    own = settings(most_upload_bytes=1 << 20)
    form = b'--x\r\ncontent-disposition: form-data; name="file"; filename="a.wav"\r\n\r\n'
    with serving(stage.service(own)) as address, line(address) as opened:
        opened.sendall(head("/v1/respond", content_type="multipart/form-data; boundary=x", transfer_encoding="chunked"))
        opened.sendall(f"{len(form):x}\r\n".encode() + form + b"\r\n")
        chunk = f"{1 << 16:x}\r\n".encode() + bytes(1 << 16) + b"\r\n"
        n_sent = 0
        with pytest.raises((BrokenPipeError, ConnectionResetError)):
            for _ in range(GIGABYTE >> 16):
                opened.sendall(chunk)
                n_sent += 1
        assert n_sent < 1000  # what the sockets hold, and no more
        assert chats(address)


def test_a_body_that_does_not_come_is_given_up(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "STALLED_SECONDS", 0.1)
    with serving(stage.service()) as address, line(address) as opened:
        opened.sendall(head("/chat", content_type="application/json", content_length=20) + b'{"mess')
        status, data = answer(opened)
        assert status == 408 and b"did not come" in data
        assert chats(address)


def test_a_second_request_that_does_not_come_to_its_end_is_given_up(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_protocol, "HEAD_SECONDS", 0.3)
    with serving(stage.service()) as address, line(address) as opened:
        request = b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        for _ in range(3):  # each is one more than the last
            opened.sendall(request + b"\r\n")
            data = b""
            while not data.endswith(b'"ready"}'):
                data += opened.recv(1 << 16)
        opened.sendall(request)
        began = time.monotonic()
        assert opened.recv(1 << 16) == b""  # it hung up
        assert time.monotonic() - began < 5


def test_a_form_of_a_thousand_fields_is_refused(stage: Stage) -> None:
    part = '--x\r\ncontent-disposition: form-data; name="n{}"\r\n\r\nv\r\n'
    body = ("".join(part.format(n) for n in range(5000)) + "--x--\r\n").encode()
    with stage.client() as http:
        refused = http.post(
            "/v1/audio/transcriptions", content=body, headers={"content-type": "multipart/form-data; boundary=x"}
        )
        assert refused.status_code == 400 and len(refused.content) < 1000


@pytest.mark.parametrize("kind", ["multipart/form-data", "multipart/form-data; boundary=", "text/plain", "audio/wav"])
def test_bodies_of_another_kind_are_refused(stage: Stage, kind: str) -> None:
    with stage.client() as http:
        for path in ("/v1/audio/transcriptions", "/v1/respond"):
            refused = http.post(path, content=b"--x\r\n\r\n", headers={"content-type": kind})
            assert refused.status_code == 400 and refused.json()["error"]["message"]


def test_json_that_is_huge_inside(stage: Stage) -> None:
    with stage.client() as http:
        deep = '{"message": ' + '{"a":' * 150_000 + "1" + "}" * 150_000 + "}"
        wide = json.dumps({"message": "x", **{f"n{n}": n for n in range(50_000)}})
        long = '{"message": "x", "persona": ' + "9" * 900_000 + "}"
        for body, status in ((deep, 400), (wide, 200), (long, 400)):
            found = http.post("/chat", content=body, headers={"content-type": "application/json"})
            assert found.status_code == status and len(found.content) < 1000


def test_a_message_that_is_too_long_for_a_socket_ends_only_its_own(stage: Stage) -> None:
    with serving(stage.service(settings(most_message_bytes=1 << 16))) as address:
        url = f"ws{address[4:]}/ws/chat"
        with connect(url) as other, connect(url) as loud:
            for opened in (other, loud):
                opened.recv(10)
            with pytest.raises(ConnectionClosed) as ended:
                loud.send(json.dumps({"message": "x" * (1 << 17)}))
                loud.recv(10)
            assert ended.value.rcvd is not None and ended.value.rcvd.code == 1009
            other.send('{"type": "ping"}')
            assert json.loads(other.recv(10))["type"] == "pong"
