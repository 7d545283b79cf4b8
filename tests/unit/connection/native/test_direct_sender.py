"""DirectSender: which path a node takes, why, and for which transports."""

import asyncio
import resource
import socket
import ssl
import sys
from pathlib import Path
from types import ModuleType

import pytest

from snorky.gateway.connection.native.direct_sender import DirectSender
from tests.support.extension import NAME, extension, extension_built, skip_without_ring
from tests.support.scenarios.site import on_both_loops
from tests.support.servers.redis_servers import make_tls


@pytest.mark.needs("gcc", "Python.h")
def test_the_module_is_used_where_it_is_built_and_allowed() -> None:
    skip_without_ring()
    with extension_built():
        auto, send, off = DirectSender(), DirectSender("send"), DirectSender("off")
    assert (auto.path, auto.reason) == ("io_uring", "")
    assert (send.path, send.reason, send.send_many) == ("send", 'native_fanout = "send"', extension().send_many)
    assert (off.path, off.reason, off.send_many) == ("python", 'native_fanout = "off"', None)


@pytest.mark.needs("gcc", "Python.h")
def test_where_io_uring_is_forbidden_the_reason_is_known() -> None:
    """A real refusal: the process may have no more descriptors."""
    with extension_built():
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            sender = DirectSender()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (sender.path, sender.send_many) == ("send", extension().send_many)
    assert sender.reason == "io_uring: Too many open files"


def test_without_the_module_the_reason_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, NAME, None)  # type: ignore[arg-type]  # as if it were not there
    sender = DirectSender()
    assert (sender.path, sender.send_many) == ("python", None)
    assert sender.reason == "the extension module was not built: no compiler"


def test_a_module_that_cannot_be_loaded_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> ModuleType:
        raise ImportError("undefined symbol: send", name=name)

    monkeypatch.setattr("snorky.gateway.connection.native.direct_sender.import_module", fail)
    sender = DirectSender()
    assert (sender.path, sender.reason) == ("python", "undefined symbol: send")


@pytest.mark.needs("gcc", "Python.h")
@on_both_loops
async def test_transports_with_a_socket_of_their_own_take_part() -> None:
    with extension_built():
        sender = DirectSender()
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp, _ = await loop.create_connection(asyncio.Protocol, *server.getsockname())
        ours, theirs = socket.socketpair()
        unix, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ours)
        assert sender.direct_of(tcp) is not None and sender.direct_of(unix) is not None
        assert DirectSender("off").direct_of(tcp) is None
        tcp.abort()
        unix.abort()
        theirs.close()
        await asyncio.sleep(0)


@pytest.mark.needs("gcc", "Python.h")
@on_both_loops
async def test_a_closing_transport_does_not_take_part() -> None:
    """Between a failed write and `connection_lost`, the connection does not know it yet."""
    with extension_built():
        sender = DirectSender()
    with socket.create_server(("127.0.0.1", 0)) as server:
        tcp, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, *server.getsockname())
        tcp.abort()
        assert sender.direct_of(tcp) is None
        await asyncio.sleep(0)


@pytest.mark.needs("gcc", "Python.h", "openssl")
@on_both_loops
async def test_tls_and_unknown_transports_do_not(tmp_path: Path) -> None:
    """Bytes on the socket of a TLS connection would be plain text in the middle of its records."""
    with extension_built():
        sender = DirectSender()
    tls = make_tls(tmp_path)
    context, trust = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH), ssl.create_default_context(cafile=tls.ca)
    context.load_cert_chain(tls.certificate, tls.key)
    accepted: asyncio.Future[asyncio.Transport] = asyncio.get_running_loop().create_future()

    class Accepting(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.set_result(transport)  # type: ignore[arg-type]

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Accepting, "127.0.0.1", 0, ssl=context)
    port = server.sockets[0].getsockname()[1]
    client, _ = await loop.create_connection(asyncio.Protocol, "127.0.0.1", port, ssl=trust)
    transport = await accepted
    found = transport.get_extra_info("sslcontext"), sender.direct_of(transport)
    client.abort()
    transport.abort()
    server.close()
    await server.wait_closed()
    assert found == (context, None)
    assert sender.direct_of(asyncio.Transport()) is None
