"""A line between a client and a server that a test can cut: bytes go through until it does."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class Line:
    """Listens on a free port of this machine and forwards to `port`. `down`: nobody gets through any more."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self.down = False
        self._open: list[socket.socket] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.cut()
        for thread in self._threads:
            thread.join()

    def cut(self) -> None:
        """Both ends of every connection see it break, without a word."""
        with self._lock:
            broken, self._open = self._open, []
        for end in broken:
            _end(end)  # which wakes the thread that reads from it
        for end in broken:
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            if self.down:
                client.close()
                continue
            server = socket.create_connection(("127.0.0.1", self._port))
            with self._lock:
                self._open += [client, server]
            for here, there in ((client, server), (server, client)):
                self._threads.append(threading.Thread(target=self._forward, args=(here, there)))
                self._threads[-1].start()

    def _forward(self, here: socket.socket, there: socket.socket) -> None:
        try:
            while data := here.recv(65536):
                there.sendall(data)
        except OSError:
            pass
        _end(here)
        _end(there)


def _end(connection: socket.socket) -> None:
    with suppress(OSError):  # the other side was faster
        connection.shutdown(socket.SHUT_RDWR)
