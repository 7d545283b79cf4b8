"""snorky.client.Publisher against a scripted Redis: its commands, attempts, receipts and errors."""

import asyncio
import multiprocessing
import pickle
import threading
from datetime import datetime
from typing import Any

import pytest
from publishers import POSITION, publisher_of
from scripted_redis import answer_each, array, commands, error, redis_url, replies, take, text
from scripted_server import ScriptedServer, hang_up

from snorky.client import HistoryNotKept, Position, Publication, Publisher, PublishError, PublishManyError
from snorky.client.aio import Publisher as AsyncPublisher


def test_message_goes_through_the_function_and_its_receipt_tells_the_position() -> None:
    with ScriptedServer([replies(text(POSITION))]) as server, publisher_of(server) as publisher:
        receipt = publisher.publish({"room": 5, "kind": "a"}, {"x": "ü"}, key="k1", service="pubsub")
    assert receipt.position == Position("6aa", 7, "0123abcd")
    assert (receipt.key, receipt.nodes) == ("k1", None)
    name = 'snorky:{pubsub:~{"kind":"a","room":5}}'
    assert commands(server) == [["FCALL", "snorky_publish", "1", name, '{"x":"ü"}', "k1"]]


def test_channel_without_history_has_no_position() -> None:
    with ScriptedServer([replies(text(""))]) as server, publisher_of(server) as publisher:
        assert publisher.publish("news", 1).position is None


def test_message_that_must_be_kept_and_is_not_raises_an_error_that_jobs_can_pickle() -> None:
    with ScriptedServer([replies(text("")), replies(text(POSITION))]) as server, publisher_of(server) as publisher:
        with pytest.raises(HistoryNotKept, match="keeps no history") as raised:
            publisher.publish("news", 1, key="k1", require_history=True)
        assert publisher.publish("news", 1, require_history=True).position is not None
    assert (raised.value.code, raised.value.key, raised.value.may_have_happened) == ("not_kept", "k1", True)
    assert isinstance(pickle.loads(pickle.dumps(raised.value)), HistoryNotKept)
    assert len(commands(server)) == 2, "an answer is final"


def test_one_of_many_that_must_be_kept_and_is_not_is_named() -> None:
    many = [Publication("news", number, require_history=number == 1) for number in range(3)]
    with ScriptedServer([replies(array(*[text("")] * 3))]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishManyError) as raised:
            publisher.publish_many(many)
    assert [type(error) for error in raised.value.errors.values()] == [HistoryNotKept]
    assert [number for number, receipt in enumerate(raised.value.receipts) if receipt is None] == [1]


def test_message_that_must_be_kept_never_goes_by_plain_publish() -> None:
    script = [answer_each(lambda _: error("ERR Function not found"))]
    with ScriptedServer(script) as server, publisher_of(server, if_no_function="publish", timeout_s=0.5) as publisher:
        with pytest.raises(PublishError) as raised:
            publisher.publish("news", 1, require_history=True)
    assert raised.value.code == "no_function"
    assert {sent[0] for sent in commands(server)} == {"FCALL"}


async def test_asyncio_publisher_requires_history_too() -> None:
    with ScriptedServer([replies(text(""))]) as server:
        async with AsyncPublisher(redis_url(server)) as publisher:
            with pytest.raises(HistoryNotKept):
                await publisher.publish("news", 1, require_history=True)


@pytest.mark.parametrize(
    ("nodes", "members", "connections"),
    [(3, b":41\r\n", 41), (3, b":0\r\n", None), (0, b":0\r\n", 0), (3, error("NOPERM no"), None)],
)
def test_count_tells_who_hears_the_channel_as_far_as_it_is_known(
    nodes: int, members: bytes, connections: int | None
) -> None:
    counted = b"*2\r\n" + text("acme:{pubsub:news}") + b":%d\r\n" % nodes
    script = [replies(text(""), counted, members)]
    with ScriptedServer(script) as server, publisher_of(server, prefix="acme") as publisher:
        receipt = publisher.publish("news", 1, count=True)
    assert (receipt.nodes, receipt.connections) == (nodes, connections)
    roster = "acme:nodes{pubsub:news}:roster"
    assert commands(server)[1:] == [["PUBSUB", "NUMSUB", "acme:{pubsub:news}"], ["HLEN", roster]]


def test_channel_of_a_cluster_is_looked_for_where_the_servers_say_it_is() -> None:
    with ScriptedServer([replies(text("e:1:a"), text("e:2:b"))]) as owner:
        moved = replies(error(f"MOVED 866 127.0.0.1:{owner.port}"))
        with ScriptedServer([moved]) as seed:
            url = f"redis+cluster://127.0.0.1:{seed.port}"
            with Publisher(url, sleep=lambda _s: None) as publisher:
                for offset in (1, 2):
                    position = publisher.publish("news", offset).position
                    assert position is not None and position.offset == offset
            assert len(commands(seed)) == 1


def test_server_of_a_cluster_that_is_lost_is_forgotten_and_another_one_asked() -> None:
    with ScriptedServer([take(), hang_up]) as old, ScriptedServer([replies(text("e:1:a"))]) as new:
        url = f"redis+cluster://127.0.0.1:{old.port},127.0.0.1:{new.port}"
        with Publisher(url, sleep=lambda _s: None) as publisher:
            assert str(publisher.publish("news", 1).position) == "e:1:a"
        assert commands(old) == commands(new)


def test_missing_rules_are_told_from_a_missing_function() -> None:
    lacking = answer_each(lambda _words: error("ERR snorky_publish: no node with this prefix has been here"))
    with ScriptedServer([lacking]) as server, Publisher(redis_url(server)) as publisher:
        with pytest.raises(PublishError, match=r"no channel rules .* within 2 s after a FLUSHALL") as caught:
            publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("no_function", False)
    assert "does not have the function" not in str(caught.value)
    assert len(commands(server)) > 1


def test_plain_publish_only_where_it_was_asked_for_and_then_without_position() -> None:
    with (
        ScriptedServer([replies(error("ERR Function not found"), b":2\r\n")]) as server,
        publisher_of(server, if_no_function="publish") as publisher,
    ):
        assert publisher.publish("news", 1).position is None
    assert commands(server)[1] == ["PUBLISH", "snorky:{pubsub:news}", "1"]


def test_plain_publish_is_never_sent_twice() -> None:
    with (
        ScriptedServer([replies(error("ERR Function not found")), take(), hang_up]) as server,
        publisher_of(server, if_no_function="publish") as publisher,
        pytest.raises(PublishError) as caught,
    ):
        publisher.publish("news", 1)
    assert caught.value.may_have_happened
    assert [command[0] for command in commands(server)] == ["FCALL", "PUBLISH"]


def test_many_go_out_together_and_what_has_no_answer_alone_is_sent_again() -> None:
    messages = [Publication(f"news {number}", number) for number in range(4)]
    first = [take(4), lambda peer: peer.sock.sendall(text("e:1:a") + text("e:2:b")), hang_up]
    with ScriptedServer(first, [replies(text("e:3:c"), text("e:4:d"))]) as server, publisher_of(server) as publisher:
        receipts = publisher.publish_many(messages)
    assert [str(receipt.position) for receipt in receipts] == ["e:1:a", "e:2:b", "e:3:c", "e:4:d"]
    assert [command[4] for command in commands(server)] == ["0", "1", "2", "3", "2", "3"]


def test_of_many_each_refused_one_is_told_and_the_others_have_receipts() -> None:
    said = [text("e:1:a"), error("ERR no"), text("e:2:b")]
    with ScriptedServer([replies(*said)]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishManyError, match="1 of 3") as caught:
            publisher.publish_many([Publication("a", 1), Publication("b", 2, key="k2"), Publication("c", 3)])
    assert [receipt is not None for receipt in caught.value.receipts] == [True, False, True]
    assert (caught.value.errors[1].code, caught.value.errors[1].key) == ("refused", "k2")


@pytest.mark.parametrize(
    ("channel", "message"),
    [
        ("news", float("nan")),
        ("news", {"x": float("inf")}),
        ("news", "\ud800"),
        ("news", 2**64),
        ("news", object()),
        ("news", {1: 2}),
        ("news", [0] * 10_001),
        ("news", "x" * 1_048_577),
        ("x" * 254, 1),
        ("\udfff", 1),
        ([2**53], 1),
    ],
)
def test_what_a_node_would_not_take_is_refused_before_anything_is_sent(channel: Any, message: Any) -> None:
    with ScriptedServer() as server, publisher_of(server) as publisher:
        with pytest.raises((ValueError, TypeError)):
            publisher.publish(channel, message)
        with pytest.raises((ValueError, TypeError)):
            publisher.publish_many([Publication("fine", 1), Publication(channel, message)])
    assert server.connections == 0


def test_key_and_service_that_cannot_be_are_refused() -> None:
    publisher = Publisher("redis://127.0.0.1:1/0")
    for options in ({"key": ""}, {"key": "x" * 256}, {"service": "a:b"}, {"service": ""}):
        with pytest.raises(ValueError):
            publisher.publish("news", 1, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "http://h/",
        "redis+sentinel://h:1",
        "redis+sentinel:///x",
        "redis+sentinel://h:x/name",
        "redis+cluster://h:1/2",
    ],
)
def test_url_that_cannot_work_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        Publisher(url)
    assert url == "" or url not in str(caught.value)


def test_errors_go_through_a_job_queue() -> None:
    one = PublishError("lost", "no_reply", may_have_happened=True, key="k1")
    many = PublishManyError([None], {0: one})
    again = pickle.loads(pickle.dumps(one))
    assert (str(again), again.code, again.may_have_happened, again.key) == ("lost", "no_reply", True, "k1")
    assert str(pickle.loads(pickle.dumps(many))) == str(many)


def test_threads_get_their_own_receipts() -> None:
    echo = answer_each(lambda words: text("e:1:" + words[4].decode()))
    wrong: list[object] = []
    with ScriptedServer(*[[echo]] * 8) as server, publisher_of(server) as publisher:

        def work(number: int) -> None:
            for turn in range(40):
                receipt = publisher.publish("news", number * 100 + turn)
                if receipt.position is None or receipt.position.tag != str(number * 100 + turn):
                    wrong.append(receipt)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
    assert wrong == [] and server.connections <= 8


def _publish_in_child(publisher: Publisher, pipe: Any) -> None:
    pipe.send(str(publisher.publish("news", 2).position))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_opens_connections_of_its_own() -> None:
    both = [replies(text("e:1:a"), text("e:3:c"))]
    with ScriptedServer(both, [replies(text("e:2:b"))]) as server, publisher_of(server) as publisher:
        assert str(publisher.publish("news", 1).position) == "e:1:a"
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_publish_in_child, args=(publisher, theirs))
        child.start()
        assert ours.poll(10) and ours.recv() == "e:2:b"
        child.join(10)
        assert str(publisher.publish("news", 3).position) == "e:3:c"
        assert server.connections == 2
        ours.close()
        theirs.close()


async def test_coroutines_publish_side_by_side() -> None:
    echo = answer_each(lambda words: text("e:1:" + words[4].decode()))
    with ScriptedServer(*[[echo]] * 8) as server:
        async with AsyncPublisher(redis_url(server)) as publisher:
            receipts = await asyncio.gather(*[publisher.publish("news", number) for number in range(100)])
            assert [receipt.position.tag for receipt in receipts if receipt.position] == list(map(str, range(100)))
            assert len(await publisher.publish_many([Publication("a", 1), Publication("b", 2)])) == 2


def test_value_that_is_no_json_is_refused_with_what_to_write() -> None:
    with pytest.raises(TypeError, match="isoformat"):
        Publisher("redis://127.0.0.1:1/0").publish("news", datetime(2020, 1, 1))
