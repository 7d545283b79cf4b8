"""The protocol's POST /backend as scenarios: every status, and batches."""

from collections.abc import Iterator
from typing import Any

from tests.support.scenarios.conformance import Scenario, Step, ok, posts, scenario
from tests.support.scenarios.envelope_table import refusal

__all__ = ["HTTP_SCENARIOS"]


def publish(message: Any, call_id: Any = None) -> dict[str, Any]:
    request = {"command": "publish", "params": {"channel": "sport", "message": message}}
    return {"service": "pubsub_backend", "message": request if call_id is None else {**request, "callId": call_id}}


def done(call_id: Any = None) -> dict[str, Any]:
    response: dict[str, Any] = {"type": "response", "data": None}
    return {"service": "pubsub_backend", "message": response if call_id is None else {**response, "callId": call_id}}


def heard(*messages: Any) -> dict[str, list[Any]]:
    notifications = [{"type": "message", "channel": "sport", "message": message} for message in messages]
    return {"ann": notifications, "bob": notifications}


@scenario(ann=None, bob=None)
def backend_over_http() -> Iterator[Step]:
    for who in ("ann", "bob"):
        yield ok(who, "pubsub.subscribe", channel="sport")
    yield posts(publish("1:0", 7), 200, done(7), heard("1:0"))
    yield posts(publish("1:1"), 200, done(), heard("1:1"))
    empty = {"service": "pubsub_backend", "message": {"command": "publish", "params": {}, "callId": [1]}}
    yield posts(empty, 200, refusal("pubsub_backend", "Invalid params", [1]))
    subscribe = {"service": "pubsub_backend", "message": {"command": "subscribe", "params": {"channel": "sport"}}}
    yield posts(subscribe, 200, refusal("pubsub_backend", "Unknown command"))
    for data, text in (
        (b"this is not JSON", "Malformed JSON (byte 4)"),
        (b"", "Malformed JSON (truncated)"),
        (b"42", 'Expected an object with "service" and "message"'),
        (b'{"message": 1}', 'Missing "service"'),
    ):
        yield posts(data, 400, refusal("gateway", text))
    yield posts({"service": "pubsub_backend"}, 400, refusal("pubsub_backend", 'Missing "message"'))
    for name in ("nobody", "pubsub", "auth"):  # client services are not for the backend
        yield posts({"service": name, "message": {"callId": 5}}, 404, refusal(name, "Unknown service", 5))


@scenario(ann=None, bob=None)
def backend_over_http_in_batches() -> Iterator[Step]:
    for who in ("ann", "bob"):
        yield ok(who, "pubsub.subscribe", channel="sport")
    yield posts([], 200, [])
    batch = [publish(number, number) for number in range(1, 21)]
    yield posts(batch, 200, [done(number) for number in range(1, 21)], heard(*range(1, 21)))
    mixed = [
        publish("a"),
        {"service": "nobody", "message": {"callId": 2}},
        5,
        {"service": "pubsub_backend"},
        publish("b"),
    ]
    answers = [
        done(),
        refusal("nobody", "Unknown service", 2),
        refusal("gateway", 'Expected an object with "service" and "message"'),
        refusal("pubsub_backend", 'Missing "message"'),
        done(),
    ]
    yield posts(mixed, 200, answers, heard("a", "b"))
    nobody = {"service": "nobody", "message": 1}
    yield posts([nobody] * 1000, 200, [refusal("nobody", "Unknown service")] * 1000)
    yield posts([nobody] * 1001, 400, refusal("gateway", "A batch has at most 1000 envelopes"))


@scenario()
def backend_over_http_has_a_key() -> Iterator[Step]:
    wrong = refusal("gateway", "Wrong or missing X-Backend-Key")
    keys: list[dict[str, str]] = [{}, {"X-Backend-Key": "wrong"}, {"X-Backend-Key": ""}]
    for headers in keys:
        yield posts(publish(1), 401, wrong, headers=headers)
        yield posts(b"this is not JSON", 401, wrong, headers=headers)
    yield posts(b" " * 1_100_000, 413, refusal("gateway", "The request is too large"))


@scenario("required")
def backend_over_http_is_not_for_browsers() -> Iterator[Step]:
    refused = refusal("gateway", "Browsers need a key: set [private] api_key")
    yield posts(publish(1), 403, refused, headers={"Origin": "https://app.example.org"})
    yield posts(publish(1), 200, done(), headers={})


HTTP_SCENARIOS: tuple[Scenario, ...] = tuple(each for each in list(globals().values()) if isinstance(each, Scenario))
