"""A seeded fuzzer of handshakes and frames against a gateway in a process of its own.

10,000 cases over raw sockets, a few at a time, while a canary client gets its numbered messages. At the end there is
no unhandled error, no number is missing, all counts are zero, and the memory is released.

SNORKY_FUZZ_SEED repeats a run, SNORKY_FUZZ_CASES changes its length; a failing test names the case.
"""

import asyncio
import errno
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.clients.raw_ws import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    close_payload,
    deflated,
    frame,
    handshake_head,
)
from tests.support.processes.nodes import clean_environment
from tests.support.processes.tools import ROOT
from tests.support.scenarios.site import until

SEED = int(os.environ.get("SNORKY_FUZZ_SEED", "20261122"))
CASES = int(os.environ.get("SNORKY_FUZZ_CASES", "10000"))
AT_ONCE = 100  # most of them wait: for a ping, or for a deadline
WAIT_S = 0.1  # for an answer that may not come
RSS_MAX_GROWTH_BYTES = (
    6 * 2**20
)  # 10,000 cases and 30,000 grow it by the same 3 MiB; a leaked frame a case would be 100


# -- cases -----------------------------------------------------------------------------------------------------


def some_bytes(rng: random.Random, most: int) -> bytes:
    return rng.randbytes(rng.choice((0, 1, 2, 7, 125, 126, rng.randint(0, most))))


def some_message(rng: random.Random) -> bytes:
    """A valid message, or nearly one."""
    choice = rng.randrange(9)
    call: dict[str, Any] = {
        "service": rng.choice(("pubsub", "echo", "gateway", "nobody", "", "a b")),
        "message": {
            "command": rng.choice(("subscribe", "publish", "unsubscribe", "info", "x")),
            "params": {"channel": rng.choice(("a", 1, None, {"k": [1.5]}, "x" * 300)), "message": rng.random()},
            "callId": rng.choice((1, None, "c", [], 2**70)),
        },
    }
    if choice < 3:
        return json.dumps(call).encode()
    if choice == 3:
        del call[rng.choice(("service", "message"))]
        return json.dumps(call).encode()
    if choice == 4:
        return b"[" * rng.randrange(3000) + b"]" * rng.randrange(3000)
    if choice == 5:
        text = bytearray(json.dumps(call).encode())
        for _ in range(rng.randint(1, 5)):
            text[rng.randrange(len(text))] = rng.randrange(256)
        return bytes(text)
    if choice == 6:
        return rng.choice(
            (b"NaN", b"1e999", b'"\\ud800"', b'"\xed\xa0\x80"', b"\xff", b"", b"null", b"-0", b"9" * 4000)
        )
    if choice == 7:
        return b'{"service":"echo","message":"' + b"x" * rng.choice((10, 60_000, 65_480)) + b'"}'
    return some_bytes(rng, 3000)


def some_frame(rng: random.Random) -> bytes:
    choice = rng.randrange(16)
    opcode = rng.choice((TEXT, TEXT, TEXT, TEXT, BINARY, CONTINUATION, PING, PONG, CLOSE))
    payload = some_message(rng)
    if choice == 0:
        return frame(rng.randrange(16), payload[:125], rsv=rng.randrange(8), fin=rng.random() < 0.5)
    if choice == 1:
        return frame(opcode, payload, masked=False)
    if choice == 2:
        return frame(
            opcode, payload[:100], length=rng.choice((2**63, 2**64 - 1, 65_537, 65_536, 2**31)), length_bytes=8
        )
    if choice == 3:
        return frame(opcode, payload[:120], length_bytes=rng.choice((2, 8)))
    if choice == 4:
        packed = deflated(rng.choice((payload, bytes(10**6))))
        cut = packed if rng.random() < 0.5 else packed[: rng.randrange(len(packed) + 1)]
        return frame(rng.choice((TEXT, BINARY, CONTINUATION)), cut, rsv=4, fin=rng.random() < 0.8)
    if choice == 5:
        parts = [payload[at : at + 7] for at in range(0, min(len(payload), 200), 7)] or [b""]
        frames = [frame(TEXT if at == 0 else CONTINUATION, each, fin=False) for at, each in enumerate(parts)]
        if rng.random() < 0.5:
            frames.insert(rng.randrange(len(frames) + 1), frame(rng.choice((PING, TEXT)), b"between"))
        return b"".join(frames) + frame(CONTINUATION, b"")
    if choice == 6:
        return frame(
            CLOSE, rng.choice((b"", b"\x03", close_payload(rng.randrange(65_536), some_bytes(rng, 100)[:123])))
        )
    if choice == 7:
        return rng.randbytes(rng.randint(1, 5000))
    if opcode in (PING, PONG, CLOSE):
        payload = payload[:125]
    return frame(opcode, payload, mask=rng.randbytes(4))


def some_frames(rng: random.Random) -> bytes:
    data = b"".join(some_frame(rng) for _ in range(rng.choice((1, 1, 2, 3, 10))))
    if rng.random() < 0.1:
        data = bytearray(data)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data) if rng.random() < 0.8 else bytes(data[: rng.randint(0, len(data))])


def some_head(rng: random.Random) -> bytes:
    """A handshake, or nearly one."""
    headers: dict[str, str | None] = {}
    for _ in range(rng.randrange(4)):
        name = rng.choice(
            (
                *("Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version", "Origin"),
                *("Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "X-Forwarded-For", "Content-Length"),
                *("Transfer-Encoding", "Expect", "Content-Encoding", "Cookie", "X-" + "a" * rng.randrange(100)),
            )
        )
        headers[name] = rng.choice(
            (
                *(
                    None,
                    "",
                    "websocket",
                    "Upgrade",
                    "close",
                    "keep-alive, Upgrade",
                    "13",
                    "8",
                    "0",
                    "-1",
                    "5",
                    "9" * 30,
                ),
                *("snorky.msgpack", "permessage-deflate", "permessage-deflate; server_max_window_bits=8", "chunked"),
                *("http://127.0.0.1", "null", "\xff\xfe", ",,;;", "100-continue", "gzip", "a" * 9000, "1.2.3.4, ::1"),
            )
        )
    head = handshake_head(
        headers,
        path=rng.choice(("/ws", "/ws", "/ws", "/", "*", "//", "/ws?" + "q" * 100, "http://x/ws", "/%00", "/ws\xff")),
        method=rng.choice(("GET", "GET", "GET", "GET", "POST", "HEAD", "OPTIONS", "CONNECT", "get", "G\x00T", "PRI")),
    )
    choice = rng.randrange(10)
    if choice == 0:
        head = head.replace(b"HTTP/1.1", rng.choice((b"HTTP/1.0", b"HTTP/2.0", b"HTTP/1.1.1", b"", b"HTCPCP/1.0")), 1)
    elif choice == 1:
        head = head.replace(b"\r\n", rng.choice((b"\n", b"\r", b"\r\n ", b"\0\r\n")), rng.randrange(1, 9))
    elif choice == 2:
        data = bytearray(head)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        head = bytes(data)
    elif choice == 3:
        head = head[: rng.randrange(len(head))]
    elif choice == 4:
        head = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * rng.randrange(40) + head
    elif choice == 5:
        head = rng.randbytes(rng.randint(1, 2000))
    return head


Case = tuple[bytes, bytes, int, str]  # head, frames after it, size of a read (0: all at once), how it ends


def make_case(number: int) -> Case:
    """Make one case; the same for the same seed and number."""
    rng = random.Random(SEED * 1_000_003 + number)
    if rng.random() < 0.3:
        head = some_head(rng)
    else:
        offer = rng.choice((None, None, "permessage-deflate; client_max_window_bits"))
        protocol = rng.choice((None, None, "snorky.msgpack"))
        head = handshake_head({"Sec-WebSocket-Extensions": offer, "Sec-WebSocket-Protocol": protocol})
    frames = some_frames(rng)
    piece = rng.choice((0, 0, 0, 1, 3, 100)) if len(frames) < 2000 else 0
    return head, frames, piece, rng.choice(("close", "close", "reset", "end", "close frame", "wait"))


async def run_case(case: Case, host: str, port: int) -> None:
    """Send it; any reaction of the gateway is right if the connection ends."""
    head, frames, piece, end = case
    async with await RawClient.open(host, port) as client:
        try:
            if piece:
                await client.send(head)
                for at in range(0, min(len(frames), 200 * piece), piece):
                    await client.send(frames[at : at + piece])
            else:
                await client.send(head + frames)
            if end != "end" and len(frames) % 4:  # some disconnect before anything is read
                async with asyncio.timeout(WAIT_S):
                    await client._read()
            if end == "reset":
                client.reset()
                return
            if end == "close":
                return
            if end == "close frame":
                await client.send(frame(CLOSE, close_payload(1000)))
            if end == "end":
                client.end()
            if end in ("wait", "close frame"):  # it may still be a healthy connection, or an incomplete frame
                async with asyncio.timeout(WAIT_S):
                    await client._read()
            else:
                await client.until_end()
        except TimeoutError:
            assert end != "end", "the gateway holds a connection whose client has ended"
        except OSError as error:  # the gateway closed it
            if not isinstance(error, ConnectionError) and error.errno != errno.ENOTCONN:
                raise


# -- the gateway -----------------------------------------------------------------------------------------------


class Target:
    """The gateway's process, controlled over its standard streams, a line of JSON each."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-m", "tests.support.processes.fuzz_target"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment({"PYTHONMALLOC": "malloc", "MALLOC_TRIM_THRESHOLD_": "65536"}),
            text=True,
        )
        hello = self._read()
        self.host, self.port = "127.0.0.1", int(hello["port"])

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the gateway's process has ended: {self.process.wait()}"
        return dict(json.loads(line))

    def ask(self, what: str) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(what + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()


async def follow(canary: RawClient, seen: list[int]) -> None:
    """Record the numbers that the canary gets; answer pings."""
    canary.sees_pings = True
    while True:
        opcode, payload = await canary.receive()
        if opcode == PING:
            await canary.send(frame(PONG, payload))
        elif opcode == TEXT:
            seen.append(json.loads(payload)["message"]["message"])
        else:
            raise AssertionError(f"the canary was closed: {payload!r}")


async def run_cases(numbers: range, target: Target, tell: Callable[[str], None]) -> None:
    waiting = iter(numbers)

    async def worker() -> None:
        for number in waiting:
            try:
                await run_case(make_case(number), target.host, target.port)
            except Exception as error:
                error.add_note(f"case {number} of seed {SEED}: {make_case(number)!r:.2000}")
                raise
            if number % 1000 == 999:
                tell(f"{number + 1} cases")

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(worker())


async def until_empty(target: Target) -> dict[str, Any]:
    """Wait until the gateway has only the canary left; its deadlines for handshakes and closes are below 2 s."""
    state: dict[str, Any] = {}

    def is_empty() -> bool:
        state.update(target.ask("counts"))
        return (state["connections"], state["admitted"], state["http"]) == (1, 1, 0)

    try:
        await until(is_empty)
    except AssertionError:
        raise AssertionError(f"not the canary alone is left: {state}") from None
    return target.ask("state")


async def test_ten_thousand_broken_clients_affect_no_other_and_leave_no_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def tell(text: str) -> None:
        with capsys.disabled():
            print(f"\n  fuzz, seed {SEED}: {text}", end="", flush=True)

    target = Target()
    seen: list[int] = []
    try:
        async with await RawClient.open(target.host, target.port) as canary:
            assert (await canary.handshake()).status == 101
            assert (await canary.call("subscribe", channel="canary"))["type"] == "response"
            target.ask("begin")  # from now on a number is published every few ms
            following = asyncio.ensure_future(follow(canary, seen))
            # buffers, caches and the allocator reach their size
            await run_cases(range(CASES, CASES + min(CASES, 1000)), target, tell)
            before = await until_empty(target)
            await run_cases(range(CASES), target, tell)
            after = await until_empty(target)
            published = target.ask("end")["published"]
            await until(lambda: len(seen) >= published or following.done(), "the canary gets the last number")
            assert not following.done(), following.exception()
            following.cancel()
    except AssertionError as error:
        error.add_note(f"the canary: {following!r}")
        raise
    finally:
        target.close()
    memory = f"memory {before['rss'] / 2**20:.1f} -> {after['rss'] / 2**20:.1f} MiB"
    tell(f"{memory}, {after['opened']:.0f} handshakes, canary got {len(seen)} of {published}\n")
    assert seen == list(range(published)) and published > 50
    assert (after["faults"], sorted(set(after["errors"]))) == ([], [])
    assert after["ours"] == before["ours"], "ended connections or protocols are still referenced"
    assert after["tasks"] == before["tasks"]
    assert after["fds"] == before["fds"]
    assert after["objects"] - before["objects"] < 2000
    assert after["rss"] - before["rss"] < RSS_MAX_GROWTH_BYTES
    assert after["opened"] > CASES / 3, "too few handshakes succeeded to test frames"
    assert {1002, 1003, 1007, 1009} <= set(after["codes"])


def test_a_case_is_the_same_every_time() -> None:
    assert [make_case(number) for number in range(50)] == [make_case(number) for number in range(50)]
    assert len({make_case(number) for number in range(500)}) == 500
