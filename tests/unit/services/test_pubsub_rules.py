"""Pub/sub by rules: history, recovery, idempotency keys, presence; on nodes that share history and directory."""

import json
from typing import Any

import pytest
from msgpack import Unpacker  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway import ChannelRule, ConfigurationError, History, Position, Service, ServiceRegistry
from snorky.services.pubsub import PubSubBackend, PubSubService
from snorky.services.rpc import Request
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, settle, until
from tests.support.fakes.memory_cluster import Resident, Town, town

CHANNELS = [
    ChannelRule("kept:*", history=1000),
    ChannelRule("read-only:*", history=10, recovery=False),
    ChannelRule("room:*", history=1000, presence=True, join_leave=True),
    ChannelRule("quiet:*", presence=True),
    ChannelRule("news", client_publish=False),
    ChannelRule("keyless", client_keys=False),
]
NOTHING = {"position": None, "recovered": False, "messages": []}


def services() -> list[Service]:
    return [PubSubService(channels=CHANNELS)]


async def ask(client: Resident, command: str, channel: Any = "kept:a", **params: Any) -> Any:
    return await client.ask("pubsub", command, channel=channel, **params)


async def publish(client: Resident, *messages: Any, channel: Any = "kept:a") -> None:
    for message in messages:
        assert await ask(client, "publish", channel, message=message) is None


def backend(nodes: Town, number: int = 0) -> Resident:
    private = ServiceRegistry([PubSubBackend()])
    nodes.nodes[number].attach(private)
    return Resident(nodes.nodes[number], private, None)


def told(client: Resident) -> list[Any]:
    return [each["message"] for each in client.notifications if each["type"] == "message"]


def texts(reply: Any) -> list[Any]:
    return [each["message"] for each in reply["messages"]]


def _json_lines(data: bytes) -> list[Any]:
    return [json.loads(line) for line in data.splitlines()]


def _unpacked(data: bytes) -> list[Any]:
    unpacker = Unpacker()
    unpacker.feed(data)
    return list(unpacker)


# -- history and recovery ------------------------------------------------------------------------------------------


async def test_subscribe_replies_null_and_notifies_plainly_whatever_is_kept() -> None:
    async with town(2, services) as nodes:
        client = nodes.client(0)
        assert await ask(client, "subscribe") is None
        await publish(nodes.client(1), "m")
        assert await client.notified(1) == [{"type": "message", "channel": "kept:a", "message": "m"}]


async def test_recovering_client_gets_its_position_and_that_of_each_message() -> None:
    async with town(2, services) as nodes:
        client = nodes.client(0)
        reply = await ask(client, "subscribe", recover=True)
        assert (reply["recovered"], reply["messages"]) == (True, [])
        await publish(nodes.client(1), "m", "n")
        first, second = await client.notified(2)
        assert (first["offset"], second["offset"]) == (1, 2)
        assert Position.parse(first["position"]).epoch == Position.parse(reply["position"]).epoch
        plain = {"type": "message", "channel": "kept:a", "message": "m"}
        assert first == {**plain, "offset": 1, "position": first["position"]}


async def test_client_that_resumes_on_another_node_gets_missed_and_later_messages() -> None:
    async with town(2, services) as nodes:
        first, publisher = nodes.client(0), nodes.client(1)
        await ask(first, "subscribe", recover=True)
        await publish(publisher, 1, 2)
        position = (await first.notified(2))[-1]["position"]
        first.leave()
        await publish(publisher, {"x": 3}, 4)
        again = nodes.client(1)
        reply = await ask(again, "subscribe", recover=position)
        assert (reply["recovered"], texts(reply)) == (True, [{"x": 3}, 4])
        assert [each["offset"] for each in reply["messages"]] == [3, 4]
        assert reply["messages"][-1]["position"] == reply["position"]
        await publish(publisher, 5)
        (live,) = await again.notified(1)
        assert (live["message"], live["offset"]) == (5, 5)


async def test_a_position_no_longer_in_history_gives_recovered_false() -> None:
    async with town(1, services) as nodes:
        client, publisher = nodes.client(0), nodes.client(0)
        await publish(publisher, 1, 2)
        reply = await ask(client, "subscribe", recover="other:1:tag")
        assert (reply["recovered"], reply["messages"]) == (False, [])
        assert Position.parse(reply["position"]).offset == 2


@pytest.mark.parametrize("channel", ["bare", "read-only:a", "quiet:a"])
@pytest.mark.parametrize("recover", [True, "e:1:t"])
async def test_without_history_the_reply_has_recovered_false_and_the_client_is_subscribed(
    channel: str, recover: Any
) -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        assert await ask(client, "subscribe", channel, recover=recover) == NOTHING
        await publish(client, "m", channel=channel)
        assert await client.notified(1) == [{"type": "message", "channel": channel, "message": "m"}]


MALFORMED: list[Any] = ["", "e", "e:1", "e:1:t:x", "e:-1:t", "e:1.0:t", ":1:t", "e:1:", f"e:{2**53}:t", 1, [], {}]
MALFORMED += ["e" * 200, "e:\u0661:t", f"{'e' * 190}:1:{'t' * 10}", f"e:{'1' * 5000}:t"]


@pytest.mark.parametrize("position", MALFORMED, ids=lambda each: repr(each)[:20])
async def test_an_invalid_position_is_an_error(position: Any) -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        assert await ask(client, "subscribe", recover=position) == "Error: Invalid params"
        assert await ask(client, "history", since=position) == "Error: Invalid params"
        assert not client.connection.channels


@pytest.mark.parametrize("recover", [False, None])
async def test_false_and_null_do_not_ask_to_recover(recover: Any) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), "subscribe", recover=recover) is None


@pytest.mark.parametrize(
    ("sizes", "replied"),
    [([16_000, 16_000, 800, 5], 2), ([40_000, 5], 0), ([5, 40_000, 5], 1), ([32_766, 0], 1), ([100] * 299, 299)],
)
async def test_a_reply_has_32_kib_of_messages_and_the_rest_follows(sizes: list[int], replied: int) -> None:
    messages = [f"{number}".ljust(size, "x")[:size] for number, size in enumerate(sizes)]
    async with town(1, services) as nodes:
        publisher = nodes.client(0)
        begun = (await ask(publisher, "history"))["position"]
        await publish(publisher, *messages)
        client = nodes.client(0)
        reply = await ask(client, "subscribe", recover=begun)
        assert (texts(reply), reply["recovered"]) == (messages[:replied], True)
        assert reply["position"] == (reply["messages"][-1]["position"] if replied else begun)
        assert client.inbox[0]["type"] == "response" and len(client.wire.writes) == 1, "all in one write"
        await publish(publisher, "live")
        rest = await client.notified(len(messages) - replied + 1)
        assert [each["message"] for each in rest] == [*messages[replied:], "live"]
        assert [each["offset"] for each in rest] == list(range(replied + 1, len(messages) + 2))
        again = await ask(nodes.client(0), "subscribe", recover=rest[0]["position"])
        assert again["recovered"] is True  # a client that loses the connection then resumes from there


async def test_messages_after_a_reply_look_like_live_ones_and_so_do_tombstones() -> None:
    async with town(1, services) as nodes:
        listener = nodes.client(0)
        begun = (await ask(listener, "subscribe", recover=True))["position"]
        await publish(listener, "x" * 40_000, {"a": [1.5, None]})
        nodes.archive.publish("pubsub:kept:a", b"NaN", History(300.0, 1000), None)
        await publish(listener, "last")
        live = await listener.notified(4)
        client = nodes.client(0)
        assert texts(await ask(client, "subscribe", recover=begun)) == []
        assert await client.notified(4) == live


async def test_messages_too_deep_or_large_for_one_reply_are_still_replayed() -> None:
    deep: Any = 1
    for _ in range(28):  # the deepest that a client can publish: three levels surround it
        deep = [deep]
    messages = [deep, *[list(range(100))] * 299]
    async with town(1, services) as nodes:
        publisher = nodes.client(0)
        begun = (await ask(publisher, "history"))["position"]
        await publish(publisher, *messages)
        for dialect, read in ((JSON, _json_lines), (MSGPACK, _unpacked)):  # our strict readers refuse deeper values
            for command, params in (("subscribe", {"recover": begun}), ("history", {"limit": 300})):
                client = Client(nodes.nodes[0], nodes.registries[0], dialect)
                params = {"channel": "kept:a", **params}
                client.send("pubsub", {"command": command, "params": params, "callId": "x"})
                await until(lambda client=client: client.wire.writes)
                first, *rest = read(client.wire.writes[0])
                assert (first["service"], first["message"]["callId"]) == ("pubsub", "x")
                assert texts(first["message"]["data"]) + [each["message"]["message"] for each in rest] == messages


async def test_client_that_cannot_receive_its_missed_messages_gets_recovered_false() -> None:
    """Not closed: the client would reconnect, and be closed again."""
    async with town(1, services) as nodes:
        publisher = nodes.client(0)
        begun = (await ask(publisher, "history"))["position"]
        await publish(publisher, *["x" * 50_000] * 11)
        client = nodes.client(0)
        client.wire.buffered = 1 << 19
        reply = await ask(client, "subscribe", recover=begun)
        assert (reply["recovered"], reply["messages"]) == (False, [])
        client.wire.buffered = 0
        await publish(publisher, "next")
        (told_next,) = await client.notified(1)
        assert (told_next["message"], told_next["offset"]) == ("next", 12)
        assert told_next["position"] != reply["position"]


async def test_history_returns_the_last_or_the_first_after_a_position() -> None:
    async with town(2, services) as nodes:
        client, publisher = nodes.client(0), nodes.client(1)
        empty = await ask(client, "history")
        assert (empty["recovered"], empty["messages"]) == (True, [])
        await publish(publisher, *range(120))
        last = await ask(client, "history")
        assert (texts(last), last["recovered"]) == (list(range(20, 120)), True)
        assert last["position"] == last["messages"][-1]["position"]
        since = last["messages"][4]["position"]
        page = await ask(client, "history", since=since, limit=3)
        assert (texts(page), page["recovered"], page["position"]) == ([25, 26, 27], True, last["position"])
        assert texts(await ask(client, "history", since=last["position"])) == []
        assert texts(await ask(client, "history", since=empty["position"], limit=2)) == [0, 1]
        gone = await ask(client, "history", since="other:1:tag", limit=2)
        assert (texts(gone), gone["recovered"]) == ([118, 119], False)


@pytest.mark.parametrize("limit", [0, -1, 301, "1", 1.5, True, []])
async def test_limit_must_be_a_count_within_bounds(limit: Any) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), "history", limit=limit) == "Error: Invalid params"


async def test_undeliverable_payload_keeps_its_place_in_history() -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        begun = (await ask(client, "history"))["position"]
        await publish(client, 1)
        nodes.archive.publish("pubsub:kept:a", b"NaN", History(300.0, 1000), None)
        await publish(client, 3)
        for reply in (await ask(client, "history"), await ask(client, "subscribe", recover=begun)):
            messages = reply["messages"]
            assert [each["message"] for each in messages] == [1, None, 3]
            assert [each.get("tombstone", False) for each in messages] == [False, True, False]
            assert [each["offset"] for each in messages] == [1, 2, 3]


# -- permissions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "channel"),
    [("history", "bare"), ("history", "quiet:a"), ("presence", "kept:a"), ("presenceStats", "kept:a")],
)
async def test_features_without_a_rule_are_not_authorized(command: str, channel: str) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), command, channel) == "Error: Not authorized"


@pytest.mark.parametrize("command", ["subscribe", "history", "presence", "presenceStats"])
async def test_client_that_may_not_subscribe_may_not_read_the_channel(command: str) -> None:
    class Closed(PubSubService):
        async def can_subscribe(self, request: Request, channel: Any) -> bool:
            return request.identity == "ann"

    async with town(1, lambda: [Closed(channels=CHANNELS)]) as nodes:
        assert await ask(nodes.client(0, "bob"), command, "room:a") == "Error: Not authorized"
        assert await ask(nodes.client(0, "ann"), command, "room:a") != "Error: Not authorized"
        assert await nodes.nodes[0].ownership.directory.members("pubsub:room:a") == [] or command == "subscribe"


async def test_clients_have_keys_where_the_rule_allows_and_the_backend_always() -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        assert await ask(client, "publish", "keyless", message=1) is None
        assert await ask(client, "publish", "keyless", message=1, key="k") == "Error: Not authorized"
        assert await ask(client, "publish", "other", message=1, key="k") is None
        private = backend(nodes)
        assert await private.ask("pubsub_backend", "publish", channel="keyless", message=2, key="k") is None


async def test_only_the_backend_publishes_where_clients_may_not() -> None:
    async with town(1, services) as nodes:
        client = nodes.client(0)
        await ask(client, "subscribe", "news")
        assert await ask(client, "publish", "news", message=1) == "Error: Not authorized"
        assert await backend(nodes).ask("pubsub_backend", "publish", channel="news", message=2) is None
        await client.notified(1)
        assert told(client) == [2]


async def test_backend_publishes_with_the_history_of_the_rule() -> None:
    async with town(1, services) as nodes:
        await backend(nodes).ask("pubsub_backend", "publish", channel="kept:a", message={"x": 1})
        assert texts(await ask(nodes.client(0), "history")) == [{"x": 1}]


def test_rules_are_read_when_the_service_is_made() -> None:
    service = PubSubService(channels=[{"match": "a", "history": 3}])
    assert [rule.history for rule in service.rules] == [3]
    with pytest.raises(ConfigurationError, match="channels, rule 1"):
        PubSubService(channels=[{"match": "a", "histroy": 3}])


# -- idempotency keys ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_an_identity_publishes_once_under_a_key_from_wherever(channel: str) -> None:
    async with town(2, services) as nodes:
        listener = nodes.client(0)
        await ask(listener, "subscribe", channel)
        for number in range(4):
            assert await ask(nodes.client(number, "ann"), "publish", channel, message=number, key="k") is None
        await ask(nodes.client(0, "ann"), "publish", channel, message="other", key="l")
        await listener.notified(2)
        await settle()
        assert told(listener) == [0, "other"]


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_keys_of_two_users_never_collide(channel: str) -> None:
    """Also of identities that look like others with their keys, and of anonymous clients."""
    async with town(1, services) as nodes:
        listener = nodes.client(0)
        await ask(listener, "subscribe", channel)
        senders = [("ann", "k"), ("bob", "k"), ("ann k", "k"), ("ann", "k k"), ("", "k"), (None, "k"), (None, "k")]
        for number, (identity, key) in enumerate(senders):
            await ask(nodes.client(0, identity), "publish", channel, message=number, key=key)
        forged = nodes.client(0, None)
        await ask(forged, "publish", channel, message=7, key="identity ann k")
        await backend(nodes).ask("pubsub_backend", "publish", channel=channel, message=8, key="k")
        await listener.notified(9)
        await settle()
        assert sorted(told(listener)) == list(range(9))


@pytest.mark.parametrize("channel", ["kept:a", "bare"])
async def test_keys_of_two_channels_never_collide(channel: str) -> None:
    async with town(1, services) as nodes:
        listener, ann = nodes.client(0), nodes.client(0, "ann")
        for each in (channel, channel + "2"):
            await ask(listener, "subscribe", each)
            await ask(ann, "publish", each, message=each, key="k")
        await listener.notified(2)


async def test_backend_publishes_once_under_a_key() -> None:
    async with town(1, services) as nodes:
        listener, private = nodes.client(0), backend(nodes)
        await ask(listener, "subscribe")
        for number in (1, 1, 2):
            await private.ask("pubsub_backend", "publish", channel="kept:a", message=number, key=f"k{number}")
        await listener.notified(2)
        await settle()
        assert told(listener) == [1, 2]


@pytest.mark.parametrize("key", ["", "k" * 256, "é" * 128, 5, True, [], {}])
async def test_an_invalid_key_is_an_error(key: Any) -> None:
    async with town(1, services) as nodes:
        assert await ask(nodes.client(0), "publish", message=1, key=key) == "Error: Invalid params"
        assert await backend(nodes).ask("pubsub_backend", "publish", channel="a", message=1, key=key) == (
            "Error: Invalid params"
        )
        assert nodes.bus.published == []


# -- presence ------------------------------------------------------------------------------------------------------


async def test_presence_lists_subscribers_of_all_nodes() -> None:
    async with town(3, services) as nodes:
        ann, ann_too, bob = nodes.client(0, "ann"), nodes.client(1, "ann"), nodes.client(2, "bob")
        stranger = nodes.client(1)
        for client in (ann, ann_too, bob, stranger):
            await ask(client, "subscribe", "quiet:a")
        outsider = nodes.client(2)
        everybody = sorted(["ann", "bob", stranger.connection.id])
        assert await ask(outsider, "presence", "quiet:a") == {"members": everybody}
        assert await ask(outsider, "presenceStats", "quiet:a") == {"members": 3, "connections": 4}
        await ask(ann, "unsubscribe", "quiet:a")
        stranger.leave()
        await settle(50)
        assert await ask(outsider, "presenceStats", "quiet:a") == {"members": 2, "connections": 2}
        assert bob.notifications == []  # no subscriber asked for notices


async def test_notices_reach_the_others_once_per_identity() -> None:
    async with town(2, services) as nodes:
        watcher, recovering = nodes.client(0, "watcher"), nodes.client(1, "recovering")
        await ask(watcher, "subscribe", "room:a")
        await ask(recovering, "subscribe", "room:a", recover=True)
        bob, bob_too = nodes.client(0, "bob"), nodes.client(1, "bob")
        for client in (bob, bob_too):
            await ask(client, "subscribe", "room:a")
        await publish(bob, "hello", channel="room:a")
        bob.leave()
        await settle(50)
        assert await ask(bob_too, "leave", "room:a") is None
        joined, left = ({"type": kind, "channel": "room:a", "identity": "bob"} for kind in ("joined", "left"))
        await watcher.hears(left)
        await recovering.hears(left)
        kinds = [each["type"] for each in watcher.notifications]
        assert kinds == ["joined", "joined", "message", "left"]
        assert watcher.notifications[1] == joined
        assert [each for each in recovering.notifications if each["type"] != "message"] == [joined, left]
        assert [each["type"] for each in bob_too.notifications] == ["message"]
        assert all(each["service"] == "pubsub" for each in watcher.envelopes)


async def test_failed_subscribe_adds_no_presence_and_removes_none() -> None:
    async with town(1, services) as nodes:
        client, outsider = nodes.client(0, "ann"), nodes.client(0)
        await ask(client, "subscribe", "quiet:a")
        assert await ask(client, "subscribe", "quiet:a") == "Error: Already subscribed"
        assert await ask(outsider, "presence", "quiet:a") == {"members": ["ann"]}
        nodes.brokers[0].is_failing = True
        for recover in (None, True):
            answer = await ask(nodes.client(0, "bob"), "subscribe", "room:b", recover=recover)
            assert answer == "Error: Temporarily unavailable"
        nodes.brokers[0].is_failing = False
        assert await ask(outsider, "presence", "room:b") == {"members": []}


async def test_presence_of_too_many_is_refused_with_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("snorky.services.pubsub.replies.MEMBERS_MAX", 3)
    async with town(1, services) as nodes:
        for number in range(4):
            assert "Error" not in str(await ask(nodes.client(0), "presence", "quiet:a")), number
            await ask(nodes.client(0, f"i{number}"), "subscribe", "quiet:a")
        assert await ask(nodes.client(0), "presence", "quiet:a") == "Error: Too many members"
        assert await ask(nodes.client(0), "presenceStats", "quiet:a") == {"members": 4, "connections": 4}
