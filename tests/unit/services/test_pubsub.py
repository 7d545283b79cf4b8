"""PubSub: PROTOCOL "Services and their commands", from clients and from the backend."""

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snorky.gateway import Limits
from snorky.services.pubsub import PubSubService
from snorky.services.rpc import Request, RPCError
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, house, settle, until
from tests.support.scenarios.pubsub_calls import NULL, ask, call, error, notifications

# -- the commands -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("subscribe", "unsubscribe"), [("subscribe", "unsubscribe"), ("join", "leave")])
@pytest.mark.parametrize("dialect", [JSON, MSGPACK], ids=["json", "msgpack"])
async def test_client_subscribes_receives_and_unsubscribes(subscribe: str, unsubscribe: str, dialect: Any) -> None:
    async with house(PubSubService()) as built:
        client, publisher = built.client(dialect), built.client()
        assert await ask(client, subscribe, channel="news") == NULL
        assert await ask(publisher, "publish", channel="news", message={"x": [1]}) == NULL
        await until(lambda: notifications(client))
        assert client.envelopes[-1] == {
            "service": "pubsub",
            "message": {"type": "message", "channel": "news", "message": {"x": [1]}},
        }
        assert await ask(client, unsubscribe, channel="news") == NULL
        assert await ask(publisher, "publish", channel="news", message=2) == NULL
        await settle()
        assert len(notifications(client)) == 1
        assert notifications(publisher) == []


async def test_publisher_gets_its_own_message_if_it_is_subscribed() -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        await ask(client, "publish", channel="news", message=1)
        await ask(client, "subscribe", channel="news")
        await ask(client, "publish", channel="news", message=2)
        await until(lambda: notifications(client))
        await settle()
        assert notifications(client) == [{"type": "message", "channel": "news", "message": 2}]


@pytest.mark.parametrize("name", ["subscribe", "join"])
async def test_second_subscribe_is_already_subscribed(name: str) -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        await ask(client, "subscribe", channel={"a": 1, "b": 2})
        assert await ask(client, name, channel={"b": 2.0, "a": 1}) == error("Already subscribed", "already_subscribed")


@pytest.mark.parametrize("name", ["unsubscribe", "leave"])
async def test_unsubscribe_without_subscription_is_not_subscribed(name: str) -> None:
    async with house(PubSubService()) as built:
        client, other = built.client(), built.client()
        await ask(other, "subscribe", channel="news")
        assert await ask(client, name, channel="news") == error("Not subscribed", "not_subscribed")


@pytest.mark.parametrize(
    ("command", "params"),
    [
        ("subscribe", {}),
        ("subscribe", {"channel": 1, "message": 2}),
        ("subscribe", {"Channel": 1}),
        ("unsubscribe", {}),
        ("publish", {"channel": 1}),
        ("publish", {"message": 1}),
        ("publish", {"channel": 1, "message": 2, "request": 3}),
    ],
)
async def test_params_that_do_not_fit_are_invalid(command: str, params: dict[str, Any]) -> None:
    async with house(PubSubService()) as built:
        assert await ask(built.client(), command, **params) == error("Invalid params", "invalid_params")


@pytest.mark.parametrize(
    "command", ["can_publish", "can_subscribe", "notification", "on_message", "rules", "publish_from_backend"]
)
async def test_unknown_commands_are_refused(command: str) -> None:
    async with house(PubSubService()) as built:
        assert await ask(built.client(), command, channel=1) == error("Unknown command", "unknown_command")


@pytest.mark.parametrize("command", ["subscribe", "unsubscribe", "publish"])
@pytest.mark.parametrize("channel", ["x" * 254, ["x" * 252], 2**53, 1e17])
async def test_channel_that_has_no_canonical_form_is_refused(command: str, channel: Any) -> None:
    async with house(PubSubService()) as built:
        params = {"channel": channel} | ({"message": 1} if command == "publish" else {})
        answer = await ask(built.client(), command, **params)
        assert answer["type"] == "error"
        assert answer["code"] == "invalid_channel"
        assert built.broker.published == []


async def test_broker_that_does_not_answer_is_unavailable() -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        built.broker.is_failing = True
        for params in ({"command": "subscribe", "channel": 1}, {"command": "publish", "channel": 1, "message": 2}):
            answer = await ask(client, **params)  # type: ignore[arg-type]
            assert answer == {**error("Temporarily unavailable", "unavailable"), "retryAfterMs": 1000}


async def test_publish_after_a_subscribe_in_one_read_is_received() -> None:
    """No client needs to wait for the reply to its subscribe."""
    async with house(PubSubService()) as built:
        client = built.client()
        built.broker.gate.clear()
        call(client, "subscribe", "s", channel="news")
        call(client, "publish", "p", channel="news", message=1)
        await settle()
        assert built.broker.published == []
        built.broker.gate.set()
        await until(lambda: notifications(client))


async def test_limit_of_channels_is_an_error() -> None:
    async with house(PubSubService(), limits=Limits(channels_per_connection=1)) as built:
        client = built.client()
        await ask(client, "subscribe", channel=1)
        assert await ask(client, "subscribe", channel=2) == error("Too many channels", "limit_exceeded")


# -- channels ---------------------------------------------------------------------------------------------------

SAME: list[tuple[Any, Any]] = [
    ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
    (1, 1.0),
    (0, -0.0),
    ([{"x": [1.0]}], [{"x": [1]}]),
    (1e2, 100),
    ("é", "\u00e9"),
    (None, None),
]


DIFFERENT: list[tuple[Any, Any]] = [
    (1, True),
    (0, False),
    (None, "null"),
    (1, "1"),
    ([1], 1),
    ([], {}),
    ([1, 2], [2, 1]),
    ({"a": 1}, {"a": None}),
    ("a", "A"),
    ("é", "e\u0301"),
    ("~1", 1),
    ("~[]", []),
    ("", None),
    ("a*", "ab"),
    ("a?", "ab"),
    ("{a}", "a"),
    ("a\n", "a"),
]


@pytest.mark.parametrize(("subscribed", "published"), SAME)
async def test_channels_of_equal_canonical_form_are_one(subscribed: Any, published: Any) -> None:
    async with house(PubSubService()) as built:
        client = built.client()
        await ask(client, "subscribe", channel=subscribed)
        await ask(client, "publish", channel=published, message="m")
        await until(lambda: notifications(client))
        assert await ask(client, "unsubscribe", channel=published) == NULL


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize(("one", "other"), DIFFERENT)
async def test_channels_of_different_canonical_form_are_two(one: Any, other: Any, turned: bool) -> None:
    if turned:
        one, other = other, one
    async with house(PubSubService()) as built:
        client = built.client()
        await ask(client, "subscribe", channel=one)
        await ask(client, "publish", channel=other, message="no")
        await ask(client, "publish", channel=one, message="yes")
        await until(lambda: notifications(client))
        assert [each["message"] for each in notifications(client)] == ["yes"]


# -- many at once -----------------------------------------------------------------------------------------------


async def _publish_async(self: PubSubService, request: Request, channel: Any, message: Any) -> bool:
    await asyncio.sleep(0)
    return True


@pytest.mark.parametrize("is_async", [False, True], ids=["plain hook", "async hook"])
async def test_burst_of_one_client_keeps_its_order(is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if is_async:
        monkeypatch.setattr(PubSubService, "can_publish", _publish_async)
    async with house(PubSubService()) as built:
        client = built.client()
        await ask(client, "subscribe", channel="news")
        for number in range(1000):
            call(client, "publish", number, channel="news", message=number)
        await until(lambda: len(client.wire.writes) == 2001)
        assert [each["message"] for each in notifications(client)] == list(range(1000))
        assert [payload for _, payload in built.broker.published] == [b"%d" % number for number in range(1000)]
        replies = [message for message in client.messages[1:] if message["type"] == "response"]
        assert [message["callId"] for message in replies] == list(range(1000))


async def test_burst_of_one_read_is_with_the_broker_in_the_same_tick() -> None:
    """So they go out as one pipeline, without waiting for acknowledgements in between."""
    async with house(PubSubService()) as built:
        client = built.client()
        for number in range(1000):
            call(client, "publish", number, channel="news", message=number)
        assert len(built.broker.published) == 1000


# -- everything at once -----------------------------------------------------------------------------------------

WHO, WHAT = st.integers(0, 3), st.sampled_from(["a", "b", "c"])


ACTIONS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["subscribe", "unsubscribe", "publish"]), WHO, WHAT),
        st.tuples(st.just("subscribe"), WHO, WHAT),
        st.tuples(st.sampled_from(["leave", "hold", "release", "fail", "heal", "tick", "settle"]), WHO, WHAT),
    ),
    max_size=60,
)


@settings(max_examples=300, deadline=None)
@given(actions=ACTIONS)
def test_hub_broker_and_clients_agree_whatever_happens_when(actions: list[tuple[str, int, str]]) -> None:
    """Clients connect, call and disconnect while the broker is slow and fails; at the end all sides agree."""

    async def run() -> None:
        async with house(PubSubService()) as built:
            clients = [built.client() for _ in range(4)]
            asked: dict[Client, list[tuple[str, str]]] = {client: [] for client in clients}
            for action, who, channel in actions:
                if action == "leave":
                    clients[who].leave()
                    clients[who] = built.client()
                    asked[clients[who]] = []
                elif action in ("hold", "release"):
                    (built.broker.gate.clear if action == "hold" else built.broker.gate.set)()
                elif action in ("fail", "heal"):
                    built.broker.is_failing = action == "fail"
                elif action in ("tick", "settle"):
                    await settle(1 if action == "tick" else 30)
                else:
                    client = clients[who]
                    params: dict[str, Any] = {"channel": channel} | ({"message": 1} if action == "publish" else {})
                    call(client, action, len(asked[client]), **params)
                    asked[client].append((action, channel))
            built.broker.is_failing = False
            built.broker.gate.set()
            await settle(60)

            expected: dict[Client, set[str]] = {}
            for client in clients:
                answers = [each for each in client.messages if each["type"] != "message"]
                assert sorted(each["callId"] for each in answers) == list(range(len(asked[client])))
                mine: set[str] = set()  # the client's view, by its replies
                for answer in sorted(answers, key=lambda each: each["callId"]):
                    action, channel = asked[client][answer["callId"]]
                    if answer["type"] == "error":
                        refusal = {"subscribe": channel in mine, "unsubscribe": channel not in mine}.get(action, False)
                        texts = {"subscribe": "Already subscribed", "unsubscribe": "Not subscribed"}
                        assert answer["message"] == (texts[action] if refusal else "Temporarily unavailable")
                    elif action == "subscribe":
                        mine.add(channel)
                    elif action == "unsubscribe":
                        mine.discard(channel)
                expected[client] = mine
                assert client.connection.channels == {f"pubsub:{channel}" for channel in mine} or not mine
                assert len(client.connection.channels) == len(mine)
            wanted = {f"pubsub:{channel}" for mine in expected.values() for channel in mine}
            assert built.broker.subscribed == wanted
            assert built.node.counts["channels"] == len(wanted)
            assert built.node.counts["subscriptions"] == sum(map(len, expected.values()))

            before = {client: len(notifications(client)) for client in clients}
            for channel in "abc":
                built.node.channels.publish("pubsub", channel, "last")
            await settle(60)
            for client in clients:
                got = {each["channel"] for each in notifications(client)[before[client] :]}
                assert got == expected[client]

    asyncio.run(run())


@pytest.mark.parametrize("tags", [{"a": "x" * 1_024}, {"a": 1}])
async def test_tags_of_services_are_texts_within_a_bound(tags: dict[str, str]) -> None:
    service = PubSubService("pubsub")
    async with house(service) as built:
        with pytest.raises(RPCError):
            service.published("room", "m", tags=tags)
        await service.published("room", "m", tags={"a": "x"})
        assert len(built.broker.published) == 1
