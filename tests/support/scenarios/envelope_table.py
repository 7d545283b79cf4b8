"""The protocol's rules for all services as scenarios: envelopes, requests, ids, channels, the gateway itself."""

from collections.abc import Iterator, Mapping
from typing import Any

from tests.support.scenarios.conformance import ANY, Garbled, Scenario, Step, no, ok, says, scenario
from tests.support.scenarios.error_codes import CODES

__all__ = ["ENVELOPE_SCENARIOS", "refusal"]

DEEP = 40
MANY = 10_001
PACKED_NAME = b"\x82\xa7service\xa6pubsub\xa7message"  # of {"service": "pubsub", "message": ...}, all but the message


def refusal(service: str, text: Any, call_id: Any = None) -> dict[str, Any]:
    """An envelope with an error. text: of each encoding, where they differ."""
    codes = {CODES[each] for each in (text.values() if isinstance(text, Mapping) else (text,))}
    (code,) = codes
    return {"service": service, "message": {"type": "error", "callId": call_id, "message": text, "code": code}}


def garbled(text: str, packed: bytes, in_json: str, in_msgpack: str) -> Step:
    """Messages that cannot be decoded."""
    told = refusal("gateway", {"json": in_json, "msgpack": in_msgpack})
    return says("ann", Garbled(text, packed), told)


@scenario(is_apart=True, ann=None)
def what_is_no_message() -> Iterator[Step]:
    malformed, number = "Malformed MessagePack", "Number out of range"
    yield garbled("this is not JSON", b"\xc1", "Malformed JSON (byte 4)", malformed)
    yield garbled('{"service": ', PACKED_NAME, "Malformed JSON (truncated)", malformed)
    yield garbled("[" * DEEP + "]" * DEEP, b"\x91" * DEEP + b"\xc0", "Nested too deeply", "Nested too deeply")
    some = b"\xdc" + (MANY // 2).to_bytes(2, "big") + b"\x01" * (MANY // 2)
    many = b"\x92" + some + some
    yield garbled(f"[{'1,' * (MANY - 1)}1]", many, "Too many values", "Too many values")
    yield garbled("1e999", b"\xcb\x7f\xf0" + b"\0" * 6, number, number)
    yield garbled(str(2**64), b"\xcb\x7f\xf8" + b"\0" * 6, number, number)
    yield garbled('"\\ud800"', b"\xa3\xed\xa0\x80", "Malformed JSON (truncated)", "Invalid UTF-8")
    yield garbled('"\\udc00"', b"\x81\x01\x01", "Malformed JSON (byte 7)", malformed)  # a key that is not text
    yield garbled("{}x", b"\xc4\x01x", "Malformed JSON (byte 3)", malformed)  # binary
    yield garbled("{}{}", b"\xd6\xff\0\0\0\0", "Malformed JSON (byte 3)", malformed)  # a timestamp


@scenario(is_apart=True, ann=None)
def what_is_no_envelope() -> Iterator[Step]:
    values: list[Any] = [["an", "array"], "text", 5, None, []]
    for value in values:
        yield says("ann", value, refusal("gateway", 'Expected an object with "service" and "message"'))
    yield says("ann", {"message": {"callId": 1}}, refusal("gateway", 'Missing "service"'))
    for name in (5, None, "", "Pubsub", "pub sub", ["pubsub"]):
        told = refusal("gateway", '"service" must be a string of a-z, 0-9, _ and -')
        yield says("ann", {"service": name, "message": {"callId": 1}}, told)
    yield says("ann", {"service": "pubsub"}, refusal("pubsub", 'Missing "message"'))
    yield says("ann", {"service": "nobody"}, refusal("nobody", 'Missing "message"'))
    # backend services are not for clients
    for name in ("nobody", "pubsub_backend", "auth_backend", "datasync_backend"):
        called = {"service": name, "message": {"command": "publish", "callId": "c"}}
        yield says("ann", called, refusal(name, "Unknown service", "c"))
        yield says("ann", {"service": name, "message": 5}, refusal(name, "Unknown service"))


@scenario(is_apart=True, ann=None)
def requests_and_their_ids() -> Iterator[Step]:
    ids: list[Any] = ["x", "", None, 1.5, -1, True, [1, {"a": None}], {"é": [2.5]}]
    service = "messaging"
    for call_id in ids:
        request = {"command": "listParticipants", "params": {}, "callId": call_id}
        response = {"type": "response", "callId": call_id, "data": []}
        yield says("ann", {"service": service, "message": request}, {"service": service, "message": response})
        told = refusal(service, "Unknown command", call_id)
        yield says("ann", {"service": service, "message": {"command": "nonsense", "callId": call_id}}, told)
    without = {"command": "listParticipants"}  # neither an id nor parameters
    yield says("ann", {"service": service, "message": without}, {"service": service, "message": RESPONSE})
    more = {"service": service, "message": without, "other": 1}  # unknown keys
    yield says("ann", more, {"service": service, "message": RESPONSE})
    for message in (5, None, "listParticipants", [], {}, {"command": 5}, {"command": None}, {"command": ["x"]}):
        yield says("ann", {"service": service, "message": message}, refusal(service, "Unknown command"))
    for params in (5, None, "x", [], [1]):
        request = {"command": "listParticipants", "params": params, "callId": "c"}
        yield says("ann", {"service": service, "message": request}, refusal(service, "Invalid params", "c"))


RESPONSE = {"type": "response", "data": []}


@scenario(is_apart=True, ann=None)
def faults_of_a_service() -> Iterator[Step]:
    yield no("ann", "broken.fail", "Internal error")
    yield no("ann", "broken.fail_later", "Internal error")
    yield ok("ann", "broken.work", "done")


@scenario(is_apart=True, ann=None)
def the_gateway_itself() -> Iterator[Step]:
    data = {"node": ANY, "connection": ANY, "encoding": {"json": "json", "msgpack": "msgpack"}, "version": ANY}
    response = {"type": "response", "callId": "c", "data": data}
    info = {"service": "gateway", "message": {"command": "info", "callId": "c"}}
    yield says("ann", info, {"service": "gateway", "message": response})
    nonsense = {"service": "gateway", "message": {"command": "nonsense", "callId": "c"}}
    yield says("ann", nonsense, refusal("gateway", "Unknown command", "c"))


@scenario(ann="ann")
def channels_that_are_none() -> Iterator[Step]:
    long, large = "Channel is longer than 255 bytes in canonical form", "Integer in a channel is beyond 2^53 - 1"
    channels: list[Any] = ["é" * 128, ["x" * 252], 2**53, {"room": [-(2**63)]}]
    for channel, text in zip(channels, (long, long, large, large), strict=True):
        for command in ("subscribe", "unsubscribe"):
            yield no("ann", f"pubsub.{command}", text, channel=channel)
        yield no("ann", "pubsub.publish", text, channel=channel, message=1)
        yield no("backend", "pubsub_backend.publish", text, channel=channel, message=1)
        yield no("ann", "chat.join", text, channel=channel)
        yield no("ann", "cursors.join", text, document=channel)
        yield no("ann", "messaging.registerParticipant", text, name=channel)


ENVELOPE_SCENARIOS: tuple[Scenario, ...] = tuple(
    each for each in list(globals().values()) if isinstance(each, Scenario)
)
