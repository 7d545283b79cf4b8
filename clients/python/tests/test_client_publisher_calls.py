"""snorky.client.Publisher.publish_many against a scripted Redis: one call of the function for several publications."""

import threading
from collections.abc import Callable, Iterable, Sequence

import pytest
from publishers import publisher_of
from scripted_redis import answer_each, array, commands, error, redis_url, replies, take, text
from scripted_server import Peer, ScriptedServer, hang_up

from snorky.client import Publication, PublishManyError
from snorky.client.aio import Publisher as AsyncPublisher
from snorky.client.publication import Sending
from snorky.client.receipt import Receipt
from snorky.client.redis.calls import calls_of, pipelines

ONE_PAYLOAD = "ERR snorky_publish: takes one key, a payload, and perhaps an idempotency key"
NAME = "snorky:{pubsub:news}"


def many(count: int, *channels: str) -> list[Publication]:
    """Make messages to channels in turn."""
    return [Publication(channels[number % len(channels)], number, key=f"k{number}") for number in range(count)]


def echo(words: Sequence[bytes]) -> bytes:
    """Answer as the function does; a tag is the payload."""
    positions = [text(f"e:{number}:{payload.decode()[:8]}") for number, payload in enumerate(words[4::2], 1)]
    return positions[0] if len(positions) == 1 else array(*positions)


def as_earlier(answer: Callable[[Sequence[bytes]], bytes]) -> Callable[[Sequence[bytes]], bytes]:
    """Refuse several payloads, as the functions of earlier nodes do."""
    return lambda words: error(ONE_PAYLOAD) if len(words) > 6 else answer(words)


def tags(receipts: Sequence[Receipt]) -> list[str]:
    return [str(receipt.position).rpartition(":")[2] for receipt in receipts]


def test_messages_to_one_channel_are_one_call_with_a_key_and_a_position_for_each() -> None:
    with ScriptedServer([answer_each(echo)]) as server, publisher_of(server) as publisher:
        receipts = publisher.publish_many(many(5, "news", "more"))
    assert commands(server) == [
        ["FCALL", "snorky_publish", "1", NAME, "0", "k0", "2", "k2", "4", "k4"],
        ["FCALL", "snorky_publish", "1", "snorky:{pubsub:more}", "1", "k1", "3", "k3"],
    ]
    assert [(receipt.key, str(receipt.position)) for receipt in receipts] == [
        ("k0", "e:1:0"),
        ("k1", "e:1:1"),
        ("k2", "e:2:2"),
        ("k3", "e:2:3"),
        ("k4", "e:3:4"),
    ]


async def test_asyncio_publisher_sends_them_in_one_call_too() -> None:
    with ScriptedServer([answer_each(echo)]) as server:
        async with AsyncPublisher(redis_url(server)) as publisher:
            assert tags(await publisher.publish_many(many(3, "news"))) == ["0", "1", "2"]
    assert len(commands(server)) == 1


def test_calls_are_bounded_in_number_and_bytes() -> None:
    with ScriptedServer([answer_each(echo)]) as server, publisher_of(server) as publisher:
        receipts = publisher.publish_many(many(150, "news"))
    assert [len(command[4::2]) for command in commands(server)] == [64, 64, 22]
    assert tags(receipts) == [str(number) for number in range(150)]
    large = [Publication("news", "x" * size) for size in (100_000, 100_000, 100_000, 1_000_000, 1)]
    with ScriptedServer([answer_each(echo)]) as server, publisher_of(server) as publisher:
        publisher.publish_many(large)
    assert [len(command[4::2]) for command in commands(server)] == [2, 1, 1, 1]


def test_what_is_in_flight_is_bounded_in_number_and_bytes() -> None:
    def parts(sizes: Iterable[int]) -> list[int]:
        messages = [Publication(f"news {number}", "x" * size) for number, size in enumerate(sizes)]
        calls = calls_of([Sending(message, "snorky") for message in messages])
        return [len(part) for part in pipelines(calls)]

    assert parts([1_000_000] * 9) == [4, 4, 1]
    assert parts([1] * 1001) == [500, 500, 1]
    assert parts([]) == []


def test_call_whose_reply_is_lost_is_sent_again_under_the_same_keys() -> None:
    with ScriptedServer([take(), hang_up], [answer_each(echo)]) as server, publisher_of(server) as publisher:
        assert tags(publisher.publish_many(many(3, "news"))) == ["0", "1", "2"]
    first, second = commands(server)
    assert first == second


def test_message_that_is_refused_stops_no_other() -> None:
    """A refused call has published nothing, so each of its messages is sent by its own call."""

    def answer(words: Sequence[bytes]) -> bytes:
        return error("ERR no") if b"1" in words[4::2] else echo(words)

    with ScriptedServer([answer_each(answer)]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishManyError, match="1 of 4") as caught:
            publisher.publish_many([*many(3, "news"), Publication("more", 7)])
    assert [receipt is not None for receipt in caught.value.receipts] == [True, False, True, True]
    told = [(each.code, each.key, each.may_have_happened) for each in caught.value.errors.values()]
    assert told == [("refused", "k1", False)]
    assert [command[4::2] for command in commands(server)] == [["0", "1", "2"], ["7"], ["0"], ["1"], ["2"]]


def test_refusal_for_every_message_is_told_for_each() -> None:
    with ScriptedServer([replies(error("NOPERM no"))]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishManyError, match="2 of 2") as caught:
            publisher.publish_many(many(2, "news"))
    assert [(each.code, each.key) for each in caught.value.errors.values()] == [
        ("unauthorized", "k0"),
        ("unauthorized", "k1"),
    ]


@pytest.mark.parametrize("reply", [text("e:1:a"), array(text("e:1:a")), array(text("e:1:a"), text("?")), b":1\r\n"])
def test_reply_that_is_not_of_the_call_makes_the_outcome_unknown(reply: bytes) -> None:
    with ScriptedServer([replies(reply)]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishManyError) as caught:
            publisher.publish_many(many(2, "news"))
    assert caught.value.errors[1].code == "invalid_reply"
    assert caught.value.may_have_happened


def test_function_of_an_earlier_version_gets_each_message_by_a_call_of_its_own() -> None:
    script = [answer_each(as_earlier(echo))]
    with ScriptedServer(script) as server, publisher_of(server) as publisher:
        assert tags(publisher.publish_many(many(4, "news", "news", "news", "more"))) == ["0", "1", "2", "3"]
    sent = [command[4::2] for command in commands(server)]
    assert sent == [["0", "1", "2"], ["3"], ["0"], ["1"], ["2"]]


def test_earlier_function_is_not_asked_again_after_the_deadline() -> None:
    def refuse_late(peer: Peer) -> None:
        take()(peer)
        threading.Event().wait(0.26)  # no time for another attempt is left
        peer.sock.sendall(error(ONE_PAYLOAD))

    with ScriptedServer([refuse_late, answer_each(echo)]) as server, publisher_of(server, timeout_s=0.3) as publisher:
        with pytest.raises(PublishManyError) as caught:
            publisher.publish_many(many(2, "news"))
    assert len(commands(server)) == 1
    assert caught.value.code in ("refused", "no_reply")


def test_subscribers_are_counted_once_for_each_call() -> None:
    def answer(words: Sequence[bytes]) -> bytes:
        return {b"FCALL": echo(words), b"PUBSUB": array(text(NAME), b":3\r\n"), b"HLEN": b":7\r\n"}[words[0]]

    with ScriptedServer([answer_each(answer)]) as server, publisher_of(server) as publisher:
        receipts = publisher.publish_many(many(3, "news"), count=True)
    assert [(receipt.nodes, receipt.connections) for receipt in receipts] == [(3, 7)] * 3
    assert [command[0] for command in commands(server)] == ["FCALL", "PUBSUB", "HLEN"]


def test_plain_publish_has_no_calls_with_several() -> None:
    def answer(words: Sequence[bytes]) -> bytes:
        return error("ERR Function not found") if words[0] == b"FCALL" else b":2\r\n"

    with ScriptedServer([answer_each(answer)]) as server:
        with publisher_of(server, if_no_function="publish") as publisher:
            assert [receipt.position for receipt in publisher.publish_many(many(3, "news"))] == [None] * 3
    assert [command[0] for command in commands(server)] == ["FCALL", "PUBLISH", "PUBLISH", "PUBLISH"]


def test_single_message_keeps_the_call_that_every_version_takes() -> None:
    with ScriptedServer([answer_each(echo)]) as server, publisher_of(server) as publisher:
        publisher.publish_many(many(1, "news"))
    assert commands(server) == [["FCALL", "snorky_publish", "1", NAME, "0", "k0"]]
