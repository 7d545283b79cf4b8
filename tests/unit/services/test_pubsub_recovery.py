"""History and recovery of channels with rules, as clients use them."""

import json
from typing import Any

import pytest
from msgpack import Unpacker  # type: ignore[import-untyped]  # ships no annotations

from snorky.gateway import History, Position
from tests.support.fakes.fake_wire import JSON, MSGPACK, Client, until
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.pubsub_rules import ask, publish, services, texts

NOTHING = {"position": None, "recovered": False, "messages": []}


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


MALFORMED: list[Any] = [
    "",
    "e",
    "e:1:t:x",
    "e:-1",
    "e:",
    f"e:{2**53}",
    "e:-1:t",
    "e:1.0:t",
    ":1:t",
    "e:1:",
    f"e:{2**53}:t",
    1,
    [],
    {},
]


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
