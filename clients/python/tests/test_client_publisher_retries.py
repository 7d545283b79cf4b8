"""Lost answers, temporary refusals and refused connections: which publications are sent again, and which are not."""

import socket
import time
from pathlib import Path
from typing import Any

import pytest
from publishers import POSITION, publisher_of
from scripted_redis import answer_each, commands, error, redis_url, replies, take, text
from scripted_server import ScriptedServer, hang_up, wait

from snorky.client import Publication, Publisher, PublishError


def test_lost_answer_is_asked_for_again_under_the_same_key() -> None:
    with (
        ScriptedServer([take(), hang_up], [replies(text(POSITION))]) as server,
        publisher_of(server) as publisher,
    ):
        receipt = publisher.publish("news", 1)
    first, second = commands(server)
    assert first == second and first[5] == receipt.key


def test_two_publications_have_two_keys() -> None:
    with ScriptedServer([replies(text(""), text(""))]) as server, publisher_of(server) as publisher:
        assert publisher.publish("news", 1).key != publisher.publish("news", 1).key


def test_publication_without_any_answer_may_have_happened() -> None:
    with ScriptedServer([take(), wait], [take(), wait], [take(), wait]) as server:
        publisher = publisher_of(server, timeout_s=0.6, attempt_timeout_s=0.25)
        with pytest.raises(PublishError) as caught:
            publisher.publish("news", 1, key="k1")
        publisher.close()
    assert (caught.value.code, caught.value.may_have_happened, caught.value.key) == ("no_reply", True, "k1")
    assert {tuple(command) for command in commands(server)} == {
        ("FCALL", "snorky_publish", "1", "snorky:{pubsub:news}", "1", "k1")
    }


def test_publication_to_an_unreachable_server_has_not_happened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    publisher = Publisher(f"redis://127.0.0.1:{port}/0", timeout_s=0.3)
    with pytest.raises(PublishError) as caught:
        publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)


def test_later_refusal_does_not_clear_what_an_earlier_attempt_left_open() -> None:
    with ScriptedServer([take(), hang_up], [replies(error("NOPERM not yours"))]) as server:
        with pytest.raises(PublishError) as caught, publisher_of(server) as publisher:
            publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("unauthorized", True)


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("NOPERM this user has no permissions", "unauthorized"),
        ("ERR snorky: payload is no JSON", "refused"),
        ("ERR unknown command 'FCALL'", "no_function"),
    ],
)
def test_refusal_for_good_is_not_tried_again(said: str, code: str) -> None:
    with ScriptedServer([replies(error(said))]) as server, publisher_of(server) as publisher:
        with pytest.raises(PublishError) as caught:
            publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened) == (code, False)
    assert len(commands(server)) == 1


@pytest.mark.parametrize("said", ["OOM command not allowed", "READONLY You can't write", "BUSY running a script"])
def test_refusal_that_may_pass_is_tried_again(said: str) -> None:
    script = [replies(error(said)), replies(text(POSITION))]
    with ScriptedServer(script, [replies(text(POSITION))]) as server, publisher_of(server) as publisher:
        assert publisher.publish("news", 1).position is not None


def test_missing_function_is_waited_for_briefly_and_then_reported_with_a_remedy() -> None:
    lacking = answer_each(lambda _words: error("ERR Function not found"))
    with ScriptedServer([lacking]) as server, Publisher(redis_url(server)) as publisher:
        with pytest.raises(PublishError, match="start a node") as caught:
            publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened) == ("no_function", False)
    assert len(commands(server)) > 1


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@pytest.mark.parametrize("kind", ["port", "socket"])
def test_refused_connection_is_raised_at_once_and_not_tried_again(kind: str, tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{_free_port()}/0" if kind == "port" else f"unix://{tmp_path}/no.sock"
    waits: list[float] = []
    publisher = Publisher(url, sleep=waits.append)
    with pytest.raises(PublishError) as caught:
        publisher.publish("news", 1)
    assert (caught.value.code, caught.value.may_have_happened, waits) == ("unreachable", False, [])


def test_refused_connection_is_tried_again_if_the_caller_asks_for_it() -> None:
    port, waits = _free_port(), []

    def sleep(wait_s: float) -> None:
        waits.append(wait_s)
        if len(waits) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Publisher(f"redis://127.0.0.1:{port}/0", if_refused="retry", sleep=sleep).publish("news", 1)


def test_refused_server_of_a_cluster_is_not_the_end() -> None:
    with ScriptedServer([replies(text("e:1:a"))]) as other:
        url = f"redis+cluster://127.0.0.1:{_free_port()},127.0.0.1:{other.port}"
        with Publisher(url, sleep=lambda _s: None) as publisher:
            assert str(publisher.publish("news", 1).position) == "e:1:a"


def test_publication_that_may_have_happened_is_tried_again_where_connections_are_refused() -> None:
    waits: list[float] = []
    server = ScriptedServer([take(), hang_up])

    def sleep(wait_s: float) -> None:
        if not waits:
            server.__exit__()
        waits.append(wait_s)

    with pytest.raises(PublishError) as caught:
        Publisher(redis_url(server), timeout_s=0.5, sleep=sleep).publish("news", 1)
    assert caught.value.may_have_happened
    assert len(waits) > 1


TIMEOUT_S = 3.0


def oversleep(_wait_s: float) -> None:
    """Return when the deadline has passed: a busy machine may be this late."""
    time.sleep(TIMEOUT_S)


def test_redis_at_its_maxclients_has_surely_done_nothing() -> None:
    def full(peer: Any) -> None:
        take()(peer)  # the error may arrive after the command was sent
        peer.sock.sendall(error("ERR max number of clients reached"))

    with ScriptedServer(*[[full, hang_up]] * 2, [replies(text(POSITION))]) as server:
        with publisher_of(server) as publisher:
            assert publisher.publish("news", 1).position is not None
    with ScriptedServer([full, hang_up]) as server, Publisher(redis_url(server), sleep=oversleep) as publisher:
        with pytest.raises(PublishError, match="maxclients") as caught:
            publisher.publish_many([Publication("news", 1), Publication("news", 2)], timeout_s=TIMEOUT_S)
    assert (caught.value.code, caught.value.may_have_happened) == ("unavailable", False)
    assert server.connections == 1


def test_call_has_a_deadline_of_its_own() -> None:
    with ScriptedServer([take(), wait], [take(), wait]) as server:
        publisher = publisher_of(server, attempt_timeout_s=0.2)
        with pytest.raises(PublishError, match="No reply"):
            publisher.publish("news", 1, timeout_s=0.1)
        with pytest.raises(ValueError, match="timeout_s"):
            publisher.publish("news", 1, timeout_s=0)
        publisher.close()
