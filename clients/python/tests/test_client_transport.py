"""SnorkyHTTPTransport with faulty servers; it never repeats a request that may have been executed."""

import json
import multiprocessing
import socket
import threading
import time
from typing import Any

import pytest
from scripted_server import ScriptedServer, Step, answer, hang_up, http, read, reply, reset, say, wait

from snorky.client import SnorkyHTTPTransport, TransportError

MESSAGE = {"service": "echo", "message": {"command": "say", "params": {"text": "ä"}}}
OK = answer(reply(1))


def failure(server: ScriptedServer, *, timeout_s: float = 5.0, **options: Any) -> TransportError:
    """Send one message and return the error."""
    with SnorkyHTTPTransport(server.url, timeout_s=timeout_s) as transport, pytest.raises(TransportError) as caught:
        transport.send(MESSAGE, **options)
    return caught.value


def test_request_carries_key_and_message() -> None:
    with ScriptedServer([OK]) as server, SnorkyHTTPTransport(server.url, "swordfish") as transport:
        assert transport.send(MESSAGE) == reply(1)
        head = server.requests[0].partition(b"\r\n\r\n")[0].split(b"\r\n")
        assert head[0] == b"POST /backend HTTP/1.1"
        assert b"X-Backend-Key: swordfish" in head
        assert f"Host: 127.0.0.1:{server.port}".encode() in head
        assert server.bodies == [MESSAGE]


def test_requests_share_one_connection() -> None:
    with ScriptedServer([OK, OK, OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        for _ in range(3):
            transport.send(MESSAGE)
        assert (server.connections, len(server.requests)) == (1, 3)


def test_connection_closed_while_idle_is_replaced_and_nobody_notices() -> None:
    with ScriptedServer([OK, hang_up], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        transport.send(MESSAGE)
        server.wait_finished()
        assert transport.send(MESSAGE) == reply(1)
        assert (server.connections, len(server.requests)) == (2, 2)


def test_request_that_was_read_is_not_sent_again_when_a_kept_connection_ends() -> None:
    with ScriptedServer([OK, read, hang_up], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        transport.send(MESSAGE)
        with pytest.raises(TransportError) as caught:
            transport.send(MESSAGE)
        assert (caught.value.code, caught.value.may_have_happened) == ("no_reply", True)
        assert (server.connections, len(server.requests)) == (1, 2)


@pytest.mark.parametrize("end", [hang_up, reset])
def test_request_without_reply_is_sent_again_only_if_asked(end: Step) -> None:
    with ScriptedServer([read, end], [OK]) as server:
        assert failure(server).code == "no_reply"
        assert server.connections == 1
    with ScriptedServer([read, end], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert transport.send(MESSAGE, retry=True) == reply(1)
        assert server.bodies == [MESSAGE, MESSAGE]


def test_attempts_end() -> None:
    waits: list[float] = []
    with ScriptedServer(*[[read, hang_up]] * 9) as server:
        transport = SnorkyHTTPTransport(server.url, sleep=waits.append)
        with pytest.raises(TransportError):
            transport.send(MESSAGE, retry=True)
        assert (len(server.requests), len(waits)) == (4, 3)


def test_nobody_there_means_nothing_happened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(TransportError) as caught:
        SnorkyHTTPTransport(f"http://127.0.0.1:{port}/backend").send(MESSAGE)
    assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)
    assert isinstance(caught.value, RuntimeError)  # as in Snorky 0.1


def test_silence_ends_with_the_time() -> None:
    with ScriptedServer([read, wait]) as server:
        began_s = time.monotonic()
        error = failure(server, timeout_s=0.3)
        assert (error.code, error.may_have_happened) == ("no_reply", True)
        assert 0.25 < time.monotonic() - began_s < 3


@pytest.mark.parametrize("head", [b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n"])
def test_drip_of_bytes_is_not_waited_for_longer_than_silence(head: bytes) -> None:
    def drip(peer: Any) -> None:
        while not peer.server.released.wait(0.05):
            peer.sock.sendall(b"x")

    with ScriptedServer([read, say(head), drip]) as server:
        began_s = time.monotonic()
        assert failure(server, timeout_s=0.5).code == "no_reply"
        assert time.monotonic() - began_s < 3


def test_request_that_is_never_read_ends_with_the_time_and_did_not_happen() -> None:
    with ScriptedServer([wait]) as server:
        transport = SnorkyHTTPTransport(server.url, timeout_s=0.5)
        with pytest.raises(TransportError) as caught:
            transport.send(["x" * 30_000_000])  # more than the kernel buffers for a peer that does not read
        assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", False)


def test_refusal_is_heard_though_the_request_was_not_taken_whole() -> None:
    refusal = http({"message": {"type": "error", "message": "Too large", "code": "too_large"}}, "413 Too Large")

    def refuse(peer: Any) -> None:
        peer.sock.recv(1000)
        peer.sock.sendall(refusal)
        peer.sock.shutdown(socket.SHUT_WR)
        peer.server.released.wait(0.5)
        reset(peer)

    with ScriptedServer([refuse]) as server:
        transport = SnorkyHTTPTransport(server.url)
        with pytest.raises(TransportError) as caught:
            transport.send(["x" * 30_000_000])
        assert caught.value.may_have_happened is False  # "too_large" if the kernel kept the response, else not sent


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", "no_reply"),
        (b"HTTP/1.1 200 OK\r\n", "invalid_reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{}", "no_reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", "no_reply"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}", "no_reply"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "invalid_reply"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "invalid_reply"),
        (b"HTTP/1.1 101 Switching Protocols\r\n\r\n", "invalid_reply"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "invalid_reply"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n", "invalid_reply"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n", "no_reply"),
        (http(b""), "invalid_reply"),
        (http(b"<html>"), "invalid_reply"),
        (http(b"\xff"), "invalid_reply"),
        (http(b"[" * 200_000), "invalid_reply"),
    ],
)
def test_broken_answer_is_an_error_that_says_it_may_have_happened(data: bytes, code: str) -> None:
    with ScriptedServer([read, say(data), hang_up]) as server:
        error = failure(server)
        assert (error.code, error.may_have_happened) == (code, True)


@pytest.mark.parametrize("ends", ["Connection: close", "Transfer-Encoding: chunked", "Connection: keep-alive"])
def test_answers_in_every_framing_are_read(ends: str) -> None:
    body = json.dumps(reply("x" * 200_000)).encode()
    data = {
        "Connection: close": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + body,
        "Transfer-Encoding: chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (body[:1], body[1:70_000], body[70_000:]))
        + b"0\r\n\r\n",
        "Connection: keep-alive": b"HTTP/1.1 100 Continue\r\n\r\n" + http(body),
    }[ends]
    with ScriptedServer([read, say(data), hang_up], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert transport.send(MESSAGE) == reply("x" * 200_000)
        server.wait_finished()  # else the second may be sent before the end of the connection arrives
        assert transport.send(MESSAGE) == reply(1)


def test_connection_that_is_to_be_closed_is_not_used_again_though_it_is_open() -> None:
    last = answer(reply("last"), "200 OK", "Connection: close")
    with ScriptedServer([last, wait], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert transport.send(MESSAGE) == reply("last")
        assert transport.send(MESSAGE) == reply(1)
        assert server.connections == 2


def test_answer_that_nobody_asked_for_is_nobodys() -> None:
    together = say(http(reply("mine")) + http(reply("not mine")))
    with ScriptedServer([read, together, wait], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        assert transport.send(MESSAGE) == reply("mine")
        assert transport.send(MESSAGE) == reply(1)
        assert server.connections == 2


def test_late_answer_of_an_abandoned_request_is_nobodys() -> None:
    script = [read, wait, say(http(reply("late"))), read]
    with ScriptedServer(script, [OK]) as server, SnorkyHTTPTransport(server.url, timeout_s=0.3) as transport:
        with pytest.raises(TransportError):
            transport.send(MESSAGE)
        server.released.set()
        assert transport.send(MESSAGE) == reply(1)


@pytest.mark.parametrize(
    ("status", "body", "code", "may_have_happened"),
    [
        ("401 Unauthorized", {"message": {"message": "Wrong key", "code": "x"}}, "unauthorized", False),
        ("404 Not Found", {"message": {"message": "Who?", "code": "unknown_service"}}, "unknown_service", False),
        ("404 Not Found", b"<html>", "http_404", False),
        ("302 Found", b"", "http_302", False),
        ("504 Gateway Timeout", {"message": {"message": "No reply", "code": "no_reply"}}, "no_reply", True),
        ("500 Internal Server Error", [], "http_500", True),
        ("400 Bad Request", {"message": "x"}, "http_400", False),
        ("400 Bad Request", {"message": {"message": 1}}, "http_400", False),
    ],
)
def test_status_becomes_an_error_with_a_code(status: str, body: Any, code: str, may_have_happened: bool) -> None:
    with ScriptedServer([answer(body, status)]) as server:
        error = failure(server)
        assert (error.status, error.code) == (int(status[:3]), code)
        assert error.may_have_happened is may_have_happened


def test_when_to_come_back_is_told_and_kept_to() -> None:
    limited = answer({"message": {"message": "Slow", "code": "unavailable", "retryAfterMs": 700}}, "503 Unavailable")
    with ScriptedServer([limited]) as server:
        assert failure(server).retry_after_ms == 700
    with ScriptedServer([answer(b"", "503 Unavailable", "Retry-After: 2")]) as server:
        assert failure(server).retry_after_ms == 2000
    waits: list[float] = []
    with ScriptedServer([limited, OK]) as server:
        transport = SnorkyHTTPTransport(server.url, sleep=waits.append)
        assert transport.send(MESSAGE, retry=True) == reply(1)
        transport.close()
        assert waits[0] >= 0.7


def test_refusal_is_not_tried_again() -> None:
    with ScriptedServer([answer(b"", "401 Unauthorized"), OK], [OK]) as server:
        assert failure(server, retry=True).code == "unauthorized"
        assert len(server.requests) == 1


@pytest.mark.parametrize("message", [{"x": float("nan")}, {"x": float("inf")}, {"x": object()}, {"x": "\ud800"}])
def test_what_is_no_json_is_refused_before_anything_is_sent(message: Any) -> None:
    with ScriptedServer() as server, pytest.raises((ValueError, TypeError)):
        SnorkyHTTPTransport(server.url).send(message)
    assert server.connections == 0


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("ftp://127.0.0.1/", None),
        ("127.0.0.1:8003/backend", None),
        ("http:///backend", None),
        ("http://user:secret@127.0.0.1/backend", None),
        ("http://127.0.0.1:99999/backend", None),
        ("http://127.0.0.1/back end", None),
        ("http://127.0.0.1/backend", "two\r\nX-Lines: 1"),
        ("http://127.0.0.1/backend", "schlüssel"),
    ],
)
def test_url_and_key_that_cannot_work_are_refused(url: str, key: str | None) -> None:
    with pytest.raises(ValueError):
        SnorkyHTTPTransport(url, key)


def test_key_is_in_no_text() -> None:
    transport = SnorkyHTTPTransport("http://127.0.0.1:1/backend", "swordfish")
    with pytest.raises(TransportError) as caught:
        transport.send(MESSAGE)
    assert "swordfish" not in repr(transport) + repr(caught.value)


def test_threads_do_not_get_each_others_answers() -> None:
    def echo(peer: Any) -> None:
        while request := peer.read_request():
            asked = json.loads(request.partition(b"\r\n\r\n")[2])
            peer.sock.sendall(http(reply(asked)))

    wrong: list[Any] = []
    with ScriptedServer(*[[echo]] * 8) as server, SnorkyHTTPTransport(server.url) as transport:

        def work(number: int) -> None:
            for turn in range(50):
                got = transport.send([number, turn])
                if got != reply([number, turn]):
                    wrong.append(got)

        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert wrong == []
        assert server.connections <= 8


def _send_in_child(transport: SnorkyHTTPTransport, pipe: Any) -> None:
    pipe.send(transport.send(MESSAGE))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forked_process_opens_connections_of_its_own() -> None:
    with ScriptedServer([OK, OK], [OK]) as server, SnorkyHTTPTransport(server.url) as transport:
        transport.send(MESSAGE)
        context = multiprocessing.get_context("fork")
        ours, theirs = context.Pipe()
        child = context.Process(target=_send_in_child, args=(transport, theirs))
        child.start()
        assert ours.poll(10) and ours.recv() == reply(1)
        child.join(10)
        assert server.connections == 2
        assert transport.send(MESSAGE) == reply(1)  # the parent's connection still works
        assert server.connections == 2
        ours.close()
        theirs.close()


def test_request_that_was_lost_once_may_have_happened_whatever_came_later() -> None:
    server, waits = ScriptedServer([read, hang_up]), list[float]()

    def sleep(wait_s: float) -> None:
        if not waits:
            server.__exit__()
        waits.append(wait_s)

    with SnorkyHTTPTransport(server.url, sleep=sleep) as transport, pytest.raises(TransportError) as caught:
        transport.send(MESSAGE, retry=True)
    assert (caught.value.code, caught.value.may_have_happened) == ("unreachable", True)


def test_no_attempt_begins_after_the_deadline() -> None:
    with ScriptedServer([answer(b"", "503 Unavailable"), hang_up], [OK]) as server:
        late = SnorkyHTTPTransport(server.url, timeout_s=2.0, sleep=lambda _wait_s: time.sleep(2.0))
        with late, pytest.raises(TransportError) as caught:
            late.send(MESSAGE, retry=True)
        assert (caught.value.status, server.connections) == (503, 1)
