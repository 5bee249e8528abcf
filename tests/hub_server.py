"""A Hub on this machine: as much of its HTTP interface as `huggingface_hub` needs to find and download files."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

import pytest
from huggingface_hub import constants

COMMIT = "a" * 40


@dataclass
class Repo:
    """A repository. `token` is who may read it, None for everybody; `breaks` counts down: the connection breaks off in
    the middle of a file so many times."""

    files: dict[str, bytes]
    commit: str = COMMIT
    token: str | None = None
    breaks: dict[str, int] = field(default_factory=dict)


@dataclass
class Hub:
    """A running server: what it has, and what it was asked, as (method, path, range)."""

    url: str
    repos: dict[str, Repo]
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def downloads(self) -> list[tuple[str, str | None]]:
        """File and range of every download."""
        return [
            (path.rsplit("/", 1)[1], part)
            for method, path, part in self.asked
            if method == "GET" and "/resolve/" in path
        ]


@contextmanager
def running(repos: dict[str, Repo]) -> Iterator[Hub]:
    """Serve `repos` until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.hub = Hub(f"http://127.0.0.1:{server.server_port}", repos)  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.hub  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ask(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """Let huggingface_hub, which is imported already, ask the Hub at `url`, as HF_ENDPOINT would have."""
    monkeypatch.setattr(constants, "ENDPOINT", url)
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.file_download.HUGGINGFACE_CO_URL_TEMPLATE", template, raising=False)


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        hub: Hub = self.server.hub  # type: ignore[attr-defined]
        path = urlsplit(self.path).path
        hub.asked.append((self.command, path, self.headers.get("Range")))
        parts = path.strip("/").split("/")
        api = parts[:2] == ["api", "models"]
        name = "/".join(parts[2:4] if api else parts[:2])
        repo = hub.repos.get(name)
        who = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if repo is None:
            # The real one says 401 to strangers, so that nobody learns what exists.
            return self._refuse(404 if who else 401, "RepoNotFound")
        if api:
            return self._about(name, repo, parts[4:], who)
        revision, file = parts[3], "/".join(parts[4:])
        if repo.token is not None and who != repo.token:
            return self._refuse(403 if who else 401, "GatedRepo")
        if revision not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if file not in repo.files:
            return self._refuse(404, "EntryNotFound")
        return self._file(repo, file)

    def _about(self, name: str, repo: Repo, rest: list[str], who: str) -> None:
        if rest[:1] == ["auth-check"]:
            return self._refuse(403 if who else 401, "GatedRepo") if repo.token not in (None, who) else self._json({})
        if rest[:1] in (["revision"], ["tree"]) and rest[1] not in ("main", repo.commit):
            return self._refuse(404, "RevisionNotFound")
        if rest[:1] == ["tree"]:
            return self._json([_entry(path, data) for path, data in repo.files.items()])
        return self._json({"id": name, "sha": repo.commit, "siblings": [{"rfilename": path} for path in repo.files]})

    def _file(self, repo: Repo, file: str) -> None:
        data = repo.files[file]
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").split("-")[0]) if asked else 0
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", repo.commit)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {begin}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - begin))
        self.end_headers()
        if self.command == "HEAD":
            return
        if repo.breaks.get(file, 0) > 0:
            repo.breaks[file] -= 1
            self.wfile.write(data[begin : begin + (len(data) - begin) // 2])
            self.close_connection = True
            return
        self.wfile.write(data[begin:])

    def _json(self, data: object) -> None:
        text = json.dumps(data).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", code)
        self.send_header("Content-Length", "0")
        self.end_headers()


def _entry(path: str, data: bytes) -> dict[str, object]:
    digest = hashlib.sha256(data).hexdigest()
    lfs = {"oid": digest, "size": len(data), "pointerSize": 134}
    return {"type": "file", "path": path, "size": len(data), "oid": digest[:40], "lfs": lfs}
