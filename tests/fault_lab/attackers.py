"""Attackers of one node, all at once, for a bounded time, in a process of their own. Loopback only.

    python -m tests.fault_lab.attackers PUBLIC_PORT PRIVATE_PORT SECONDS SCALE

Each kind uses its own loopback address, so limits per address apply per kind. Attackers continue whatever the node
does to them. At the end the process prints one line with the count of each kind: "KIND NUMBER ...".
"""

import asyncio
import itertools
import json
import os
import secrets
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Final

from tests.support.clients.raw_ws import PING, TEXT, RawClient, frame

__all__ = ["CHANNEL", "KINDS"]

CHANNEL: Final = "heard"  # of the well-behaved client, which publishes to another channel
PAUSE_S: Final = 0.05  # pause after a refusal or a disconnect
PATIENCE_S: Final = 2.0

done: Counter[str] = Counter()


def envelope(service: str, command: str, call_id: Any = 1, **params: Any) -> bytes:
    """Encode a call as a frame."""
    message = {"command": command, "params": params, "callId": call_id}
    return frame(TEXT, json.dumps({"service": service, "message": message}).encode())


class Attack:
    """State that the attackers share. address: of one kind, in 127.0.0.0/8."""

    def __init__(self, public_port: int, private_port: int, address: str) -> None:
        self.public_port = public_port
        self.private_port = private_port
        self.address = address

    async def dial(self, port: int, receive_buffer_bytes: int = 0) -> RawClient:
        """Connect from the kind's address."""
        sock = socket.socket()
        try:
            sock.setblocking(False)
            sock.bind((self.address, 0))
            if receive_buffer_bytes:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", port))
        except BaseException:
            sock.close()
            raise
        return RawClient(sock)

    async def open(self, receive_buffer_bytes: int = 0) -> RawClient:
        """Connect and do the WebSocket handshake. Raises ConnectionError: refused."""
        client = await self.dial(self.public_port, receive_buffer_bytes)
        try:
            if (await client.handshake()).status != 101:
                raise ConnectionError("refused")
        except BaseException:
            client.close()
            raise
        return client

    async def request(self, port: int, path: str, *headers: str, body: bytes = b"") -> None:
        """Send an HTTP request, read the start of the response, disconnect."""
        async with await self.dial(port) as client:
            lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}", *headers, "", ""]
            await client.send("\r\n".join(lines).encode() + body)
            await asyncio.get_running_loop().sock_recv(client.sock, 4_096)


async def discard(client: RawClient) -> None:
    """Read to the end of the stream and discard everything."""
    while await asyncio.get_running_loop().sock_recv(client.sock, 65_536):
        pass


async def flood(attack: Attack, kind: str, data: bytes) -> None:
    """Send the same bytes repeatedly; discard the responses."""
    async with await attack.open() as client:
        reading = asyncio.ensure_future(discard(client))
        try:
            while not reading.done():
                await client.send(data)
                done[kind] += 1
                await asyncio.sleep(0)  # the kernel accepts these writes at once, so they never yield to other tasks
        finally:
            reading.cancel()


async def pings(attack: Attack) -> None:
    """Send pings as fast as possible."""
    await flood(attack, "pings", frame(PING, b"x" * 100) * 50)


async def messages(attack: Attack) -> None:
    """Publish to a channel that the well-behaved client subscribes to."""
    await flood(attack, "messages", envelope("pubsub", "publish", channel=CHANNEL, message="noise") * 20)


async def forged(attack: Attack) -> None:
    """Publish messages that look like replies to the well-behaved client's calls."""
    replies = [{"type": "response", "callId": number, "data": "forged"} for number in range(20)]
    calls = b"".join(envelope("pubsub", "publish", channel=CHANNEL, message=each) for each in replies)
    await flood(attack, "forged", calls)


async def slow(attack: Attack) -> None:
    """Request replies of 50 KB and never read."""
    async with await attack.open(receive_buffer_bytes=4_096) as client:
        call = envelope("gateway", "info", "x" * 50_000)
        for _ in range(60):
            await client.send(call)
            done["slow"] += 1
        await asyncio.sleep(PATIENCE_S)


async def state(attack: Attack) -> None:
    """Fill what the cluster stores: cursors, keys, rosters."""
    async with await attack.open() as client:
        reading = asyncio.ensure_future(discard(client))
        try:
            for number in itertools.count():
                name, large = f"d{secrets.token_hex(8)}", "x" * 50_000
                cursor = {"document": name, "status": "a", "position": "x" * 3_500}
                await client.send(
                    envelope("cursors", "join", document=name)
                    + envelope("cursors", "createCursor", privateHandle=number, **cursor)
                    + envelope("pubsub", "publish", channel=name, message=large, key=secrets.token_hex(100))
                )
                done["state"] += 1
                if reading.done():
                    return
                await asyncio.sleep(0)
        finally:
            reading.cancel()


async def guesses(attack: Attack) -> None:
    """Guess ids of SockJS sessions, with large bodies and with empty ones."""
    done["guesses"] += 2
    path = f"/sockjs/000/{secrets.token_hex(8)}"
    await attack.request(attack.public_port, f"{path}/xhr_send", body=b'["' + b"x" * 500_000 + b'"]')
    await attack.request(attack.public_port, f"{path}/xhr")


async def keys(attack: Attack) -> None:
    """Try API keys of the backend."""
    done["keys"] += 1
    await attack.request(attack.private_port, "/backend", f"X-Backend-Key: {secrets.token_hex(16)}", body=b"[]")


KINDS: dict[str, tuple[Callable[[Attack], Awaitable[None]], int]] = {  # concurrent attackers of this kind
    "pings": (pings, 4),
    "messages": (messages, 4),
    "forged": (forged, 2),
    "slow": (slow, 60),
    "state": (state, 10),
    "guesses": (guesses, 10),
    "keys": (keys, 10),
}


async def again(work: Callable[[Attack], Awaitable[None]], attack: Attack) -> None:
    """Continue whatever the node does."""
    while True:
        try:
            async with asyncio.timeout(10.0):
                await work(attack)
        except (OSError, EOFError, TimeoutError, ValueError, AssertionError):
            pass
        await asyncio.sleep(PAUSE_S)


async def main(public_port: int, private_port: int, seconds: float, scale: float) -> None:
    """Attack for `seconds`. scale: multiplies the number of attackers."""
    tasks = []
    for number, (work, count) in enumerate(KINDS.values(), 2):
        attack = Attack(public_port, private_port, f"127.0.0.{number}")
        tasks += [asyncio.ensure_future(again(work, attack)) for _ in range(max(1, round(count * scale)))]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    print(" ".join(f"{kind} {done[kind]}" for kind in KINDS), flush=True)


if __name__ == "__main__":
    # lower priority: the attackers must not take the node's CPU time
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])))
