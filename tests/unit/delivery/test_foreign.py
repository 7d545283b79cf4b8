"""Foreign protocols in the fan-out: rendered once, in the order of Snorky's own, without what they cannot express."""

from collections.abc import Mapping
from typing import Any, Literal

import pytest

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.channel_order import Gap, Late
from snorky.gateway.protocol.codec import Encoding, Json, decode_json
from snorky.gateway.protocol.foreign import EncodePublication
from snorky.gateway.protocol.publication import (
    MARK,
    Change,
    Position,
    Publication,
    Selector,
    rest_of_header,
    write_addressed,
    write_change,
    write_described,
    write_version,
)
from snorky.gateway.protocol.splicing import PAYLOAD, Compound, Shared, Template
from snorky.gateway.protocol.ws_frames import TEXT, Dialect
from tests.support.fakes.fake_wire import FakeTransport
from tests.support.scenarios.fan_out_rig import KEY, OTHER, Rig, numbers


class Rendering:
    """Records what it renders; sends no odd number, and notices only if they are gaps."""

    def __init__(self, *, follows_connections: bool = False) -> None:
        self.follows_connections = follows_connections
        self.service: str | None = None
        self.bears_gaps = True
        self.encoders: list[Json] = []  # their channels
        self.rendered: list[tuple[Json, Json, Position | None]] = []
        self.attributes: list[bytes] = []

    def encoder(self, channel: Json) -> EncodePublication:
        self.encoders.append(channel)

        def encode(payload: bytes, position: Position | None, attributes: bytes) -> bytes | None:
            value = decode_json(payload)
            self.rendered.append((channel, value, position))
            self.attributes.append(attributes)
            return None if isinstance(value, int) and value % 2 else b"<%b>" % payload

        return encode

    def change(self, channel: Json, change: Change) -> bytes | None:
        return f"{channel}{change.kind}{change.identity}".encode()

    def notice(self, envelope: Mapping[str, Any]) -> bytes | None:
        return b"gap" if envelope["message"]["type"] == "gap" else None


class Translator:
    """The frontend of one connection."""

    authenticates = False

    def accepts_order(self, channel: Json) -> bool:
        return True

    def recovers_from(self, channel: Json) -> None:
        return None

    def take(self, envelope: Mapping[str, Any]) -> None:
        return None

    def translate(self, envelope: Mapping[str, Any]) -> bytes | None:
        message = envelope["message"]
        return None if message == "nothing" else str(message).encode()


def dialect_of(rendering: Rendering) -> Dialect:
    return Dialect("json", Encoding.JSON, TEXT, lambda message: message + b"\n", rendering=rendering)


def test_publication_is_rendered_once_for_all_clients_of_a_protocol() -> None:
    rig, rendering = Rig(), Rendering()
    dialect = dialect_of(rendering)
    clients = [rig.subscriber(dialect=dialect) for _ in range(3)]
    own = rig.subscriber()
    rig.fanout.deliver(numbers(1, 2, 3, 4))
    assert rendering.rendered == [("a", number, None) for number in (1, 2, 3, 4)]
    assert [rig.wires[each].writes for each in clients] == [[b"<2>\n<4>\n"]] * 3
    assert rig.got(own) == [1, 2, 3, 4]
    assert rig.sample("snorky_deliveries_total") == 3 * 2 + 4


def test_encoder_is_kept_for_each_channel_and_protocol() -> None:
    rig, renderings = Rig(), (Rendering(), Rendering())
    for rendering in renderings:
        for key in (KEY, OTHER):
            rig.subscriber(key, dialect_of(rendering))
    for number in (2, 4, 6):
        for key in (KEY, OTHER):
            rig.fanout.deliver(numbers(number, key=key))
    for rendering in renderings:
        assert rendering.encoders == ["a", "b"]
        assert rendering.rendered == [(channel, number, None) for number in (2, 4, 6) for channel in ("a", "b")]


def test_protocol_that_sends_nothing_is_not_written_to() -> None:
    rig = Rig()
    client = rig.subscriber(dialect=dialect_of(Rendering()))
    rig.fanout.deliver(numbers(1, 3))
    assert rig.wires[client].writes == []


def test_positions_are_rendered_and_tombstones_are_not() -> None:
    rig, rendering = Rig(), Rendering()
    client = rig.subscriber(dialect=dialect_of(rendering))
    rig.hub.remove(client, KEY)
    rig.hub.add(client, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_pending=True)
    rig.hub.go_live(client, KEY, lambda position: {"service": "s", "message": {"type": "gap"}})
    kept = [MARK + b"1 e:%d:t t j\n%b" % (number, payload) for number, payload in enumerate([b"2", b"{", b"4"], 1)]
    rig.fanout.pass_on(KEY, rig.fanout._read(KEY, kept))
    assert [(value, None if at is None else at.offset) for _, value, at in rendering.rendered] == [(2, 1), (4, 3)]
    rig.fanout.pass_on(KEY, [Gap(Position("e", 9, "t"))])
    assert b"".join(rig.wires[client].writes) == b"<2>\n<4>\ngap\n"


def test_attributes_are_rendered_with_their_publications_and_others_get_none() -> None:
    rig, rendering = Rig(), Rendering()
    client, own = rig.subscriber(dialect=dialect_of(rendering)), rig.subscriber()
    to = Selector(not_connection="n.99")
    addressed = MARK + b"1 e:1:t t j " + rest_of_header(b"to", to).strip() + b"\n8"
    mixed = [b"2", write_described(b"4", b"x"), b"6", addressed, write_described(b"0", b"y"), b"10"]
    rig.fanout.deliver({KEY: mixed})
    assert list(zip([value for _, value, _ in rendering.rendered], rendering.attributes, strict=True)) == [
        (2, b""),
        (4, b"x"),
        (6, b""),
        (8, b"to"),
        (0, b"y"),
        (10, b""),
    ]
    assert rig.got(own) == [2, 4, 6, 8, 0, 10]
    assert b"".join(rig.wires[client].writes) == b"<2>\n<4>\n<6>\n<8>\n<0>\n<10>\n"
    assert rig.sample("snorky_unsequenced_publications_total") == 5


@pytest.mark.parametrize("is_positioned", [False, True])
def test_attributes_of_kept_publications_are_rendered(is_positioned: bool) -> None:
    rig, rendering = Rig(), Rendering()
    client = rig.subscriber(dialect=dialect_of(rendering))
    if is_positioned:
        rig.hub.remove(client, KEY)
        rig.hub.add(client, KEY, Template("s", {"in": KEY, "is": PAYLOAD}), is_pending=True)
        rig.hub.go_live(client, KEY, lambda position: {"service": "s", "message": {"type": "gap"}})
    kept = [MARK + b"1 e:1:t t j\n2", MARK + b"1 e:2:t t j =x\n4", MARK + b"1 e:3:t t j =y\n{"]
    rig.fanout.pass_on(KEY, rig.fanout._read(KEY, kept))
    assert rendering.attributes == [b"", b"x"]
    if not is_positioned:
        rig.fanout.pass_on(KEY, [Late(Publication(b"6", attributes=b"late"))])
        assert rendering.attributes == [b"", b"x", b"late"]


def test_whole_messages_of_services_are_notices() -> None:
    rig = Rig()
    client = rig.subscriber(dialect=dialect_of(Rendering()))
    for kind in ("joined", "gap"):
        notice = write_addressed(b'{"type":"%b"}' % kind.encode(), Selector(is_whole=True, not_identity="x"))
        rig.fanout.deliver({KEY: [notice]})
    assert rig.wires[client].writes == [b"gap\n"]


def foreign() -> tuple[Connection, FakeTransport]:
    wire = FakeTransport()
    connection = Connection(wire, dialect_of(Rendering()), node_id="n", serial=1)
    connection.frontend = Translator()
    return connection, wire


def test_messages_to_one_client_are_translated() -> None:
    connection, wire = foreign()
    connection.send({"service": "s", "message": 7})
    connection.send({"service": "s", "message": "nothing"})
    assert wire.writes == [b"7\n"]


def test_compound_is_translated_with_its_payloads_in_their_places() -> None:
    connection, _ = foreign()
    compound = Compound()
    compound.value = {
        "first": compound.enclose(b'{"a":1}'),
        "list": [compound.enclose(b"2"), compound.share(Shared(["x"]))],
    }
    frames = connection.framed_compound({"service": "s", "message": compound.value}, compound)
    assert frames == b"""{'first': b'{"a":1}', 'list': [b'2', ['x']]}\n"""


def changed(kind: Literal["+", "-", "="], connection: str, *, is_identity: bool, version: int) -> bytes:
    notice = write_addressed(
        b'{"type":"joined"}', Selector(not_identity="ann", is_whole=True) if is_identity else NO_IDENTITY
    )
    return write_version(write_change(notice, Change(kind, is_identity, "ann", connection)), version, version - 1)


NO_IDENTITY = Selector.none()


def test_each_connection_that_joins_or_leaves_is_told_only_to_protocols_that_follow_connections() -> None:
    rig = Rig()
    follower = rig.subscriber(dialect=dialect_of(Rendering(follows_connections=True)))
    other = rig.subscriber(dialect=dialect_of(Rendering()))
    own = rig.subscriber()
    rig.fanout.deliver({KEY: [changed("+", "n.1", is_identity=True, version=1)]})
    rig.fanout.deliver({KEY: [changed("+", "n.2", is_identity=False, version=2)]})
    rig.fanout.deliver({KEY: [changed("-", follower.id, is_identity=False, version=3)]})  # its own
    assert rig.wires[follower].writes == [b"a+ann\n", b"a+ann\n"]
    assert rig.wires[other].writes == []
    assert len(rig.wires[own].writes) == 1, "of the identity's first connection only"
