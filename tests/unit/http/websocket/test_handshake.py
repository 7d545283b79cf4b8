"""The handshake: accepted requests, refused requests with their status, and allowed origins."""

import pytest
from multidict import CIMultiDict, CIMultiDictProxy

from snorky.gateway.config.settings import Public
from snorky.gateway.http.websocket.handshake import HandshakeRefused, Upgrade, upgrade
from snorky.gateway.protocol.codec import Encoding
from tests.support.clients.raw_ws import BINARY, KEY, PING, RawClient, Response, frame, handshake_head
from tests.support.scenarios.site import on_both_loops, running_site

RIGHT = {
    "Host": "gateway.example.org",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}
DEFLATE = "permessage-deflate; server_no_context_takeover; client_no_context_takeover"


def answer(
    changes: dict[str, str | list[str] | None] | None = None,
    *,
    allowed_origins: tuple[str, ...] = (),
    compression: bool = False,
) -> Upgrade:
    """Make an upgrade request with the right headers except some; a list becomes several lines."""
    headers: CIMultiDict[str] = CIMultiDict()
    for name, value in {**RIGHT, **(changes or {})}.items():
        for each in value if isinstance(value, list) else [value]:
            if each is not None:
                headers.add(name, each)
    return upgrade(CIMultiDictProxy(headers), allowed_origins=allowed_origins, compression=compression)


def fields(accepted: Upgrade) -> dict[str, str]:
    """Split a 101 into its fields."""
    head, _, rest = accepted.response.partition(b"\r\n\r\n")
    assert rest == b""
    lines = head.decode().split("\r\n")
    assert lines[0] == "HTTP/1.1 101 Switching Protocols"
    return dict(line.split(": ", 1) for line in lines[1:])


def refusal(changes: dict[str, str | list[str] | None], *, allowed_origins: tuple[str, ...] = ()) -> tuple[int, str]:
    """Make an upgrade request that must be refused; returns status and reason."""
    with pytest.raises(HandshakeRefused) as caught:
        answer(changes, allowed_origins=allowed_origins)
    return caught.value.status, caught.value.reason


def test_the_example_of_the_rfc_is_accepted() -> None:
    assert fields(answer()) == {
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",  # RFC 6455 1.3
    }


@pytest.mark.parametrize(
    "changes",
    [
        {"Upgrade": "WebSocket"},
        {"Connection": "keep-alive, Upgrade"},  # Firefox
        {"Connection": "UPGRADE , foo"},
        {"Connection": ["keep-alive", "Upgrade"]},
        {"Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA=="},
        {"Origin": None, "Host": None},
    ],
)
def test_other_spellings_of_the_same_are_accepted(changes: dict[str, str | list[str] | None]) -> None:
    assert answer(changes)


@pytest.mark.parametrize(
    ("status", "changes"),
    [
        (426, {"Upgrade": None}),
        (426, {"Upgrade": "h2c"}),
        (426, {"Upgrade": "websockets"}),
        (426, {"Upgrade": "websocket, h2c"}),
        (426, {"Upgrade": ["websocket", "websocket"]}),
        (426, {"Connection": None}),
        (426, {"Connection": "close"}),
        (426, {"Connection": "upgraded"}),
        (426, {"Sec-WebSocket-Version": None}),
        (426, {"Sec-WebSocket-Version": "8"}),
        (426, {"Sec-WebSocket-Version": "013"}),
        (426, {"Sec-WebSocket-Version": "13, 8"}),
        (400, {"Sec-WebSocket-Version": ["13", "8"]}),
        (400, {"Sec-WebSocket-Key": None}),
        (400, {"Sec-WebSocket-Key": ""}),
        (400, {"Sec-WebSocket-Key": "AAAA"}),
        (400, {"Sec-WebSocket-Key": "A" * 24}),
        (400, {"Sec-WebSocket-Key": KEY + "A"}),
        (400, {"Sec-WebSocket-Key": KEY.replace("=", "é")}),
        (400, {"Sec-WebSocket-Key": "\udcff" * 24}),
        (400, {"Sec-WebSocket-Key": [KEY, KEY]}),
        (400, {"Origin": ["https://app.example.org", "https://evil.example"]}),
    ],
)
def test_requirements_of_the_rfc_are_enforced(status: int, changes: dict[str, str | list[str] | None]) -> None:
    assert refusal(changes, allowed_origins=("https://app.example.org",))[0] == status


# -- origin ----------------------------------------------------------------------------------------------------

APP = "https://app.example.org"


@pytest.mark.parametrize(
    ("origin", "host", "allowed"),
    [
        (None, "gateway.example.org", ()),  # not a browser
        (APP, "gateway.example.org", (APP,)),
        (APP, "gateway.example.org", ("https://other.example", APP)),
        ("https://anybody.example", "gateway.example.org", ("*",)),
        ("null", "gateway.example.org", ("*",)),
        ("http://localhost:8002", "localhost:8002", ()),
        ("http://127.0.0.1:8002", "127.0.0.1:8002", ()),
        ("https://127.9.9.9", "127.9.9.9", ()),
        ("http://[::1]:8002", "[::1]:8002", ()),
    ],
)
def test_these_origins_may_connect(origin: str | None, host: str, allowed: tuple[str, ...]) -> None:
    assert answer({"Origin": origin, "Host": host}, allowed_origins=allowed)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://evil.example", "gateway.example.org"),
        ("https://gateway.example.org", "gateway.example.org"),  # DNS rebinding: the attacker chooses the Host
        ("http://evil.example:8002", "evil.example:8002"),
        ("http://127.0.0.1.evil.example", "127.0.0.1.evil.example"),
        ("http://localhost.evil.example", "localhost.evil.example"),
        ("http://evil.example", "localhost:8002"),
        ("http://localhost:3000", "localhost:8002"),  # another program's page on this machine
        ("http://localhost", "localhost:8002"),
        ("http://localhost@evil.example", "localhost@evil.example"),
        ("http://evil.example@localhost:8002", "localhost:8002"),
        ("null", "localhost:8002"),  # a sandboxed frame, a file
        ("", "localhost:8002"),
        ("http://", ""),
        (APP + ".evil.example", "x"),
        (APP + "/", "x"),
        (APP + ":443", "x"),
        (APP.upper(), "x"),
        (APP.replace("https", "http"), "x"),
        ("https://xapp.example.org", "x"),
        ("*", "x"),
        ("http://[::1", "[::1"),
        ("http://\udcff", "\udcff"),
    ],
)
def test_all_other_origins_may_not(origin: str, host: str) -> None:
    assert refusal({"Origin": origin, "Host": host}, allowed_origins=(APP,)) == (403, "origin")


# -- subprotocol -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "chosen", "encoding"),
    [
        (None, None, Encoding.JSON),
        ("", None, Encoding.JSON),
        ("chat", None, Encoding.JSON),
        ("snorky.json", "snorky.json", Encoding.JSON),
        ("snorky.msgpack", "snorky.msgpack", Encoding.MSGPACK),
        ("snorky.msgpack, snorky.json", "snorky.msgpack", Encoding.MSGPACK),  # the client's order counts
        ("snorky.json,snorky.msgpack", "snorky.json", Encoding.JSON),
        ("chat, snorky.msgpack", "snorky.msgpack", Encoding.MSGPACK),
        (["chat", "snorky.msgpack"], "snorky.msgpack", Encoding.MSGPACK),  # RFC 6455 11.3.4: several lines
        ("SNORKY.MSGPACK", None, Encoding.JSON),
        ("snorky.msgpack2", None, Encoding.JSON),
    ],
)
def test_the_first_subprotocol_that_we_speak_is_chosen(
    offer: str | list[str] | None, chosen: str | None, encoding: Encoding
) -> None:
    accepted = answer({"Sec-WebSocket-Protocol": offer})
    assert accepted.dialect.encoding is encoding
    assert fields(accepted).get("Sec-WebSocket-Protocol") == chosen


# -- compression -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offer", "is_taken"),
    [
        ("permessage-deflate", True),
        ("permessage-deflate; client_max_window_bits", True),  # Chrome
        ("permessage-deflate; client_max_window_bits=15", True),
        ('permessage-deflate; client_max_window_bits="8"', True),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", True),
        ("PerMessage-Deflate ;Client_No_Context_Takeover", True),
        ("x-webkit-deflate-frame, permessage-deflate", True),
        (["x-foo", "permessage-deflate"], True),
        ("permessage-deflate; server_max_window_bits=8, permessage-deflate", True),  # the second is a fallback
        (None, False),
        ("", False),
        ("permessage-deflate2", False),
        ("permessage-deflate; server_max_window_bits=8", False),  # we would have to comply with it
        ("permessage-deflate; server_max_window_bits", False),
        # RFC 7692 7.1: decline "unknown", "invalid value", "multiple parameters with the same name"
        ("permessage-deflate; unknown", False),
        ("permessage-deflate; client_max_window_bits=16", False),
        ("permessage-deflate; client_max_window_bits=7", False),
        ("permessage-deflate; client_max_window_bits=08", False),
        ("permessage-deflate; client_max_window_bits=x", False),
        ("permessage-deflate; client_max_window_bits=", False),
        ("permessage-deflate; server_no_context_takeover=1", False),
        ("permessage-deflate; client_no_context_takeover; client_no_context_takeover", False),
        ("permessage-deflate;", False),
    ],
)
def test_offers_of_compression_are_taken_or_declined(offer: str | list[str] | None, is_taken: bool) -> None:
    accepted = answer({"Sec-WebSocket-Extensions": offer}, compression=True)
    assert accepted.dialect.has_deflate is is_taken
    assert fields(accepted).get("Sec-WebSocket-Extensions") == (DEFLATE if is_taken else None)


def test_compression_is_off_unless_configured() -> None:
    accepted = answer({"Sec-WebSocket-Extensions": "permessage-deflate"})
    assert not accepted.dialect.has_deflate
    assert "Sec-WebSocket-Extensions" not in fields(accepted)


# -- over a socket ---------------------------------------------------------------------------------------------


async def ask(client: RawClient, request: bytes) -> Response:
    await client.send(request)
    return await client.response()


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_refusals_have_a_reason_and_end_the_connection() -> None:
    async with running_site() as site:
        for changes, status, reason in (
            ({"Sec-WebSocket-Version": "8"}, 426, "version"),
            ({"Upgrade": None}, 426, "no_upgrade"),
            ({"Sec-WebSocket-Key": None}, 400, "key"),
            ({"Origin": "https://evil.example"}, 403, "origin"),
        ):
            client = await site.open()
            response = await client.handshake(changes)
            assert response.status == status
            assert response.body.strip() and response.headers["connection"] == "close"
            assert response.headers["x-content-type-options"] == "nosniff"
            if status == 426:  # RFC 6455 4.4
                assert response.headers["sec-websocket-version"] == "13"
                assert response.headers["upgrade"] == "websocket"
            assert await client.until_end() == b""
            assert site.sample("handshakes_rejected_total", reason=reason) == 1
        assert site.admitted == (0, {})


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_only_a_get_of_http_1_1_without_a_body_is_a_handshake() -> None:
    hello = frame(BINARY, b"")
    async with running_site() as site:
        for request, status in (
            (handshake_head(method="HEAD"), 405),
            (handshake_head(method="POST"), 405),
            (handshake_head().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
            (handshake_head({"Content-Length": "5"}) + b"hello", 400),
            (handshake_head({"Content-Length": "5"}), 400),  # the rest of it would have been parsed as frames
            (handshake_head({"Transfer-Encoding": "chunked"}) + b"5\r\nhello\r\n0\r\n\r\n", 400),
            (handshake_head(path="/"), 404),
            (handshake_head(path="/ws/"), 404),
            (handshake_head({"Host": None}), 400),
        ):
            client = await site.open()
            await client.send(request + hello)
            head = await client.until_end()
            assert head.startswith(b"HTTP/1.") and head.split()[1] == str(status).encode(), (request, head)
            assert b" 101 " not in head
        assert site.node.metrics.registry.get_sample_value("snorky_connections_opened_total") is None


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_a_query_in_the_address_is_allowed() -> None:
    async with running_site() as site:
        client = await site.open()
        response = await ask(client, handshake_head(path="/ws?room=1&token=x") + frame(PING, b"x"))
        assert response.status == 101
        assert await client.receive() == (0xA, b"x")


@pytest.mark.usefixtures("each_door")
@on_both_loops
async def test_an_allowed_origin_connects_and_gets_its_subprotocol_and_no_more() -> None:

    async with running_site(public=Public(allowed_origins=(APP,), compression=True)) as site:
        client = await site.open()
        response = await client.handshake(
            {
                "Origin": APP,
                "Sec-WebSocket-Protocol": "snorky.msgpack",
                "Sec-WebSocket-Extensions": "permessage-deflate",
            }
        )
        assert response.status == 101
        assert response.headers == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-accept": "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
            "sec-websocket-protocol": "snorky.msgpack",
            "sec-websocket-extensions": DEFLATE,
        }
        assert site.connection.dialect.has_deflate and site.connection.dialect.name == "msgpack"
