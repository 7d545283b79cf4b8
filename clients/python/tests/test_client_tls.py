"""https: the same exchanges through TLS, and no request to a server without a valid certificate."""

import ssl
from pathlib import Path

import pytest
from certificates import make_certificate
from scripted_server import Peer, ScriptedServer, Step, answer, hang_up, reply, wait

from snorky.client import SnorkyHTTPTransport, TransportError

OK = answer(reply(1))


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls"))


def tls(certificate: Path) -> Step:
    """Start TLS on the connection."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)

    def step(peer: Peer) -> None:
        peer.sock = context.wrap_socket(peer.sock, server_side=True)
        peer.server.keep(peer.sock)

    return step


def url_of(server: ScriptedServer, host: str = "localhost") -> str:
    return f"https://{host}:{server.port}/backend"


def test_exchanges_go_through_tls_on_one_connection_until_it_ends(certificate: Path) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    with (
        ScriptedServer([tls(certificate), OK, OK, OK, hang_up], [tls(certificate), OK]) as server,
        SnorkyHTTPTransport(url_of(server), ssl_context=trusting) as transport,
    ):
        for _ in range(3):
            assert transport.send("x" * 100_000) == reply(1)
        assert server.connections == 1
        server.wait_finished()
        assert transport.send(2) == reply(1)
        assert server.connections == 2


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
def test_nothing_is_said_to_who_has_no_good_certificate(certificate: Path, host: str) -> None:
    trusting = ssl.create_default_context(cafile=str(certificate))
    context = trusting if host == "127.0.0.1" else None  # the wrong name; an unknown authority
    with ScriptedServer([tls(certificate), OK]) as server:
        with pytest.raises(TransportError, match="certificate") as caught:
            SnorkyHTTPTransport(url_of(server, host), "swordfish", ssl_context=context).send(1)
        assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)
        server.wait_finished()
        assert server.requests == []


def test_handshake_that_never_comes_ends_with_the_time() -> None:
    with ScriptedServer([wait]) as server, pytest.raises(TransportError) as caught:
        SnorkyHTTPTransport(url_of(server), timeout_s=0.3).send(1)
    assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)
