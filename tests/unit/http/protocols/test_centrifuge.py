"""Centrifuge: the two forms, the codes, and the checks before a service gets a command."""

import json
import random
from typing import Any

import msgspec
import pytest
from centrifuge.protocol import client_pb2  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway import ChannelRule, CloseCode, Verbatim
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.centrifuge.codes import disconnect_of, error_of, unsubscribe_of
from snorky.gateway.http.protocols.centrifuge.commands import Unavailable, command_of, envelope_of, positions_of
from snorky.gateway.http.protocols.centrifuge.forms import FORMS, Form, json_of, payload_of
from snorky.gateway.http.protocols.centrifuge.protobuf import FIELDS_MAX, delimited, read_commands
from snorky.gateway.http.protocols.centrifuge.rendering import (
    DIALECTS,
    INFO_MAX_BYTES,
    checked_info,
    client_info,
    pub,
    push,
)
from snorky.gateway.protocol.attributes import entry_data, write_attributes
from snorky.gateway.protocol.codec import Envelope
from snorky.gateway.protocol.publication import Position
from snorky.services.pubsub import PubSubService
from tests.support.fakes.fake_wire import settle
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.error_codes import CODES

INFO: dict[str, Any] = {"user": "ann", "client": "n.1", "conn_info": {"name": "Ann €"}, "chan_info": [1, None]}
ATTRIBUTES: dict[str, Any] = {"info": INFO, "tags": {"kind": "€ news", "x" * 200: "y"}}
REPLIES: list[dict[str, Any]] = [
    {"id": 7, "error": {"code": 103, "message": "permission denied", "temporary": True}},
    {"id": 1, "connect": {"client": "n.1", "version": "snorky", "expires": True, "ttl": 9, "ping": 10, "pong": True}},
    {
        "id": 2**32 - 1,
        "subscribe": {
            "recoverable": True,
            "positioned": True,
            "epoch": "e",
            "offset": 2**53,
            "was_recovering": True,
            "recovered": True,
            "publications": [
                {"data": payload_of(b'{"a": 1}'), "offset": 1},
                {"data": payload_of(b"null"), "offset": 2, **ATTRIBUTES},
            ],
        },
    },
    {
        "id": 3,
        "presence": {
            "presence": {
                "n.1": {"user": "ann", "client": "n.1", "conn_info": {"name": "Ann €\n", "n": [1.5, None]}},
                "n.2": {"user": "", "client": "n.2"},
            }
        },
    },
    {"id": 4, "presence_stats": {"num_clients": 300, "num_users": 2}},
    {"id": 5, "history": {"publications": [], "epoch": "e", "offset": 3}},
    {"id": 6, "rpc": {"data": payload_of(b"[1]")}},
    {"id": 8, "unsubscribe": {}},
    {"push": {"channel": "a", "pub": {"data": payload_of(b'"\xe2\x82\xac"'), "offset": 4}}},
    {"push": {"channel": "a", "pub": {"data": payload_of(b"1"), **ATTRIBUTES}}},
    {"push": {"channel": "a", "pub": {"data": payload_of(b"1"), "tags": {"a": "b"}}}},
    {"push": {"channel": "a", "join": {"info": INFO}}},
    {"push": {"channel": "a", "join": {"info": {"user": "ann", "client": "n.1"}}}},
    {"push": {"channel": "a", "leave": {"info": {"user": "ann", "client": "n.1", "conn_info": "\u2028"}}}},
    {"push": {"channel": "a", "unsubscribe": {"code": 2500, "reason": "gone"}}},
    {"push": {"channel": "a", "subscribe": {"recoverable": True, "epoch": "e", "offset": 1, "positioned": True}}},
]


def plain(message: Any) -> Any:
    """Return a message of the other library as an object, without what is empty."""
    found: dict[str, Any] = {}
    for field, value in message.ListFields():
        if field.type == field.TYPE_BYTES:
            found[field.name] = json.loads(value)
        elif field.type != field.TYPE_MESSAGE:
            found[field.name] = value
        elif field.message_type.GetOptions().map_entry:
            found[field.name] = {
                key: plain(each) if hasattr(each, "ListFields") else each for key, each in value.items()
            }
        else:
            found[field.name] = plain(value) if hasattr(value, "ListFields") else list(map(plain, value))
    return found


def without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: without_empty(each) for key, each in value.items()}
        return {key: each for key, each in kept.items() if isinstance(each, dict) or each not in (0, False, "", [])}
    if isinstance(value, list):
        return [without_empty(each) for each in value]
    return json.loads(bytes(value)) if isinstance(value, msgspec.Raw) else value


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: str(list(reply)))
def test_both_forms_of_a_reply_say_the_same(reply: Any) -> None:
    assert json.loads(FORMS["json"].encode(reply)) == json.loads(msgspec.json.encode(reply))
    encoded = FORMS["protobuf"].encode(reply)
    size = encoded[0] if encoded[0] < 128 else encoded[0] - 128 + 128 * encoded[1]
    decoded = client_pb2.Reply.FromString(encoded[1 if encoded[0] < 128 else 2 :])
    assert decoded.ByteSize() == size
    assert plain(decoded) == without_empty(reply)


def written(**fields: Any) -> bytes:
    """Encode a command by the other library."""
    command = client_pb2.Command(**fields)
    return delimited(command.SerializeToString())


def test_commands_of_the_other_library_are_read() -> None:
    subscribe = client_pb2.SubscribeRequest(
        channel="news", recover=True, offset=2**40, epoch="e", flag=3, delta="fossil"
    )
    place = client_pb2.StreamPosition(offset=5, epoch="e")
    history = client_pb2.HistoryRequest(channel="a", limit=-1, since=place, reverse=True)
    connect = client_pb2.ConnectRequest(token="t", data=b"1", name="test", headers={"a": "b"})
    connect.subs["a"].recover = True
    connect.subs["a"].offset = 9
    connect.subs["b"].epoch = "e"
    publish = client_pb2.PublishRequest(channel="a", data=b'{ "a": 1 }')
    frame = b"".join(
        (
            written(id=300, subscribe=subscribe),
            written(id=2, history=history),
            written(id=3, connect=connect),
            written(id=4, publish=publish),
            b"\0",
        )
    )
    found = [each for each, _ in read_commands(frame)]
    asked = {"channel": "news", "recover": True, "offset": 2**40, "epoch": "e", "flag": 3}
    assert found[0] == {"id": 300, "subscribe": asked}
    assert found[1]["history"] == {"channel": "a", "limit": -1, "since": {"offset": 5, "epoch": "e"}, "reverse": True}
    subs = {"a": {"recover": True, "offset": 9}, "b": {"epoch": "e"}}
    assert found[2]["connect"] == {"token": "t", "subs": subs}
    assert found[3]["publish"] == {"channel": "a", "data": Verbatim({"a": 1}, b'{ "a": 1 }')}
    assert found[4] == {}
    command = command_of(found[2])
    assert command is not None and positions_of(command) == {"a": (9, ":9")}


@pytest.mark.parametrize(
    "frame",
    [
        b"\x05",  # cut
        b"\x02\x08",
        b"\xff" * 11,
        b"\x02\x0a\x00",  # the id as bytes
        b"\x02\x20\x01",  # connect as a number
        b"\x04\x08\x01\x08\x02",  # an id twice
        delimited(b"\x78\x01" * (FIELDS_MAX + 1)),
        b"\x01\x0b",  # a group
        written(id=1, publish=client_pb2.PublishRequest(channel="a", data=b"no json")),
        written(id=1, connect=client_pb2.ConnectRequest(token="t"))[:-1],
        delimited(b"\x08\x01\x22\x03\x0a\x01\xff"),  # a text that is no UTF-8
    ],
)
def test_commands_that_are_no_commands_are_refused(frame: bytes) -> None:
    with pytest.raises(InvalidMessage):
        list(read_commands(frame))


def test_unknown_fields_and_fixed_numbers_are_ignored() -> None:
    frame = delimited(b"\x08\x01\xa9\x06" + bytes(8) + b"\xad\x06" + bytes(4) + b"\x5a\x00")
    assert [each for each, _ in read_commands(frame)] == [{"id": 1, "ping": {}}]


def test_any_bytes_are_commands_or_refused() -> None:
    rng = random.Random(7)
    good = written(id=9, publish=client_pb2.PublishRequest(channel="a", data=b"[1]"))
    for _ in range(20_000):
        data = bytearray(rng.choice((good, rng.randbytes(rng.randrange(30)))))
        for _ in range(rng.randrange(4) if data else 0):
            data[rng.randrange(len(data))] = rng.randrange(256)
        try:
            for value, _ in read_commands(bytes(data)):
                if (command := command_of(value)) is not None and command.method not in ("ping", "send"):
                    envelope_of(command)
        except (InvalidMessage, Unavailable):
            pass


def test_every_error_has_a_code_of_this_protocol() -> None:
    for code in CODES.values():
        error = error_of(code, "text")
        assert error["code"] == 400 or error["message"] != "text", code
    assert error_of("too_late", "Too late") == {"code": 400, "message": "Too late"}
    assert error_of("unavailable")["temporary"] is True and "temporary" not in error_of("not_authorized")


def test_clients_come_back_after_the_codes_after_which_snorkys_own_do() -> None:
    for code in CloseCode:
        if code < 4000 and code not in (CloseCode.GOING_AWAY, CloseCode.INTERNAL_ERROR, CloseCode.POLICY):
            assert disconnect_of(code, "") == code, "of WebSocket itself"
            continue
        theirs = disconnect_of(code, "")
        comes_back = code < 4500 and code != CloseCode.POLICY
        assert (3000 <= theirs < 3500) is comes_back, code
    assert disconnect_of(CloseCode.BAD_TOKEN, "Token expired") == 3005
    codes = {"expired": 2501, "gap": 2500, "revoked": 2000, "not_authorized": 2000, "unsubscribed": 2000}
    assert {each: unsubscribe_of({"code": each, "reason": ""})["code"] for each in codes} == codes


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("offset", [None, 0, 1, 127, 128, 2**53])
def test_publications_are_encoded_as_other_pushes_are(form: Form, offset: int | None) -> None:
    for channel in ("", "a", 'quoted "\\€', "x" * 255):
        for payload in (b"1", b'"\xe2\x82\xac"', b'{"a": [1, 2]}', b'"%b"' % (b"x" * 70_000)):
            expected = form.encode(push(channel, "pub", pub(payload, offset, {})))
            position = None if offset is None else Position("e", offset, "t")
            assert form.encoder(channel)(payload, position, b"") == expected


@pytest.mark.parametrize("form", FORMS.values(), ids=lambda form: form.name)
@pytest.mark.parametrize("position", [None, Position("e", 3, "t")])
def test_publications_with_attributes_are_encoded_as_other_pushes_are(form: Form, position: Position | None) -> None:
    rendering, payload = DIALECTS[form.name].rendering, b'{"a": 1}'
    assert rendering is not None
    place = {} if position is None else {"offset": position.offset}
    expected = form.encode(push("a", "pub", {"data": payload_of(payload), **place, **ATTRIBUTES}))
    encode = rendering.encoder("a")
    assert encode(payload, position, write_attributes(**ATTRIBUTES)) == expected
    assert encode(payload, position, b"malformed") == encode(payload, position, b"")


@pytest.mark.parametrize("sizes", [range(90, 140), range(950, 1030), range(16_300, 16_400)])
def test_sizes_of_publications_may_take_more_bytes(sizes: range) -> None:
    """At 128 and 16,384, the lengths of the parts of a message get another byte; up to 1,023 they are in a table."""
    encode = FORMS["protobuf"].encoder("a")
    for size in sizes:
        payload = b'"%b"' % (b"x" * size)
        assert encode(payload, None, b"") == FORMS["protobuf"].encode(push("a", "pub", pub(payload, None, {})))


def test_line_breaks_in_payloads_do_not_end_a_message() -> None:
    assert FORMS["json"].encode({"data": payload_of(b'{\r\n"a":\n1}')}) == b'{"data":{  "a": 1}}'
    encode = FORMS["json"].encoder("c")
    for payload in (b'{\r\n"a":\n1}', b'{\n\n"a":\n1}', b'{\r\r"a":\r1}'):
        assert encode(payload, None, b"") == b'{"push":{"channel":"c","pub":{"data":{  "a": 1}}}}'


def test_data_of_a_reply_may_contain_payloads_and_must_be_json() -> None:
    assert bytes(json_of({"messages": [{"message": b'{"a":\n1}'}, 2]}, 100)) == b'{"messages":[{"message":{"a": 1}},2]}'
    assert bytes(json_of([1.5, None], 100)) == b"[1.5,null]"
    for wrong in (float("nan"), {"a": [b"1", float("inf")]}, object(), ["\ud800"]):
        with pytest.raises(InvalidMessage):
            json_of(wrong, 100)


def test_info_of_a_client_is_any_strict_json_up_to_a_size() -> None:
    for info in (None, 0, False, "", [], {"name": "Ann"}, "x" * (INFO_MAX_BYTES - 2), "€" * (INFO_MAX_BYTES // 3 - 1)):
        assert checked_info(info) == info
    assert checked_info(None) is None
    deep: list[Any] = []
    for _ in range(40):
        deep = [deep]
    for wrong in ("x" * (INFO_MAX_BYTES - 1), "€" * (INFO_MAX_BYTES // 3), "\ud83d", float("nan"), 2**64, deep):
        with pytest.raises(InvalidMessage):
            checked_info(wrong)


def test_client_without_info_has_no_conn_info() -> None:
    assert client_info("ann", "n.1", None) == {"user": "ann", "client": "n.1"}
    assert client_info("n.1", "n.1", False) == {"user": "", "client": "n.1", "conn_info": False}
    assert client_info("n.1", "n.1", entry_data(None, 0)) == {"user": "", "client": "n.1", "chan_info": 0}
    assert client_info("ann", "n.1", entry_data([], {})) == {
        "user": "ann",
        "client": "n.1",
        "conn_info": [],
        "chan_info": {},
    }


async def test_size_of_a_message_is_that_of_its_bytes() -> None:
    channels = [ChannelRule("*", message_max_bytes=10)]
    async with town(1, lambda: [PubSubService(channels=channels)]) as nodes:
        client = nodes.client(0)
        for size in (10, 11):
            params = {"channel": "a", "message": Verbatim("a", b'"a"'.ljust(size))}
            call = {"command": "publish", "params": params, "callId": size}
            nodes.registries[0].accept(client.connection, Envelope("pubsub", call), size)
        await settle()
        assert client.inbox
        assert [client.answers[size].get("code") for size in (10, 11)] == [None, "too_large"]
