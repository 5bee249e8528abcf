"""Loaded by every Python that has this folder in PYTHONPATH: a socket beyond this machine raises, and is written down.

OFFLINE_LOG names the file that attempts are added to, for those who swallow the error.
"""

from __future__ import annotations

import ipaddress
import os
import sys

_NAMES = (None, "", "localhost", "ip6-localhost")


def _is_local(address: object) -> bool:
    if not isinstance(address, tuple):
        return True  # a Unix socket's path, or netlink
    return _is_local_host(address[0])


def _is_local_host(host: object) -> bool:
    host = host.decode() if isinstance(host, bytes) else host
    if host in _NAMES:
        return True
    try:
        return ipaddress.ip_address(str(host).partition("%")[0]).is_loopback
    except ValueError:
        return False


def _guard(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"):
        local = arguments[1] is None or _is_local(arguments[1])
    elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr"):
        local = _is_local_host(arguments[0])
    else:
        return
    if not local:
        with open(os.environ["OFFLINE_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123 - nothing else is loaded yet
            log.write(f"{event} {arguments[1:] if event.startswith('socket.c') else arguments}\n")
        raise OSError(f"the network is cut: {event} {arguments}")


sys.addaudithook(_guard)
