"""Listening sockets: one or both address families on one port, with options that accepted connections inherit."""

import errno
import socket
from typing import Final

from snorky.gateway.errors import ConfigurationError

__all__ = ["listen", "url_of"]

BACKLOG: Final = 4096  # after a restart all clients reconnect at once; the kernel limits it to somaxconn
PORTS_TRIED: Final = 10  # for port 0: one that is free for the first family may be in use in the other


def listen(host: str, port: int, *, reuse_port: bool = False, send_buffer_bytes: int = 0) -> list[socket.socket]:
    """Bind and listen. host: "" = all, IPv4 and IPv6. port: 0 = a free one, the same for both families.

    reuse_port: share it with other processes of this gateway. send_buffer_bytes: SO_SNDBUF of the connections; 0 = the
    kernel's default, which buffers 4 MB for a client that does not read. Raises ConfigurationError.
    """
    tries = 1 if port else PORTS_TRIED
    while True:
        tries -= 1
        try:
            return _listen(host, port, reuse_port=reuse_port, send_buffer_bytes=send_buffer_bytes)
        except OSError as error:
            is_in_use = error.errno == errno.EADDRINUSE
            if tries and is_in_use:
                continue
            advice = "choose another port, or stop what listens there" if is_in_use else "check host"
            where = f"{host or '*'}:{port}"
            raise ConfigurationError(f"cannot listen on {where}: {error.strerror}; {advice}") from error


def _listen(host: str, port: int, *, reuse_port: bool, send_buffer_bytes: int) -> list[socket.socket]:
    sockets: list[socket.socket] = []
    try:
        for family, address in _addresses(host, port):
            try:
                bound = socket.socket(family, socket.SOCK_STREAM)
            except OSError:
                if host == "" and family == socket.AF_INET6:
                    continue  # a machine without IPv6
                raise
            sockets.append(bound)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            if reuse_port:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if send_buffer_bytes:
                bound.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            if family == socket.AF_INET6:
                bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                bound.bind((address, port))
            except OSError as error:
                if host == "" and family == socket.AF_INET6 and error.errno == errno.EADDRNOTAVAIL:
                    sockets.remove(bound)
                    bound.close()
                    continue  # IPv6 is switched off
                raise
            port = bound.getsockname()[1]
            bound.listen(BACKLOG)
            bound.setblocking(False)
        return sockets
    except OSError:
        for each in sockets:
            each.close()
        raise


def url_of(bound: socket.socket) -> str:
    """Return the URL of a listening socket for this machine, as http://HOST:PORT."""
    address, port = bound.getsockname()[:2]
    if address in ("0.0.0.0", "::"):  # noqa: S104 - read here, not bound
        address = "127.0.0.1" if bound.family == socket.AF_INET else "::1"
    return f"http://[{address}]:{port}" if ":" in address else f"http://{address}:{port}"


def _addresses(host: str, port: int) -> list[tuple[socket.AddressFamily, str]]:
    if host == "":
        return [(socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")]  # noqa: S104 - the operator wrote ""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    unique = dict.fromkeys((family, str(address[0])) for family, _type, _proto, _name, address in found)
    return [each for each in unique if each[0] in (socket.AF_INET, socket.AF_INET6)]
