"""Conversations of the documents, run against a real node: the lines of a `wire` block are sent and compared.

    ```wire limits.messages_burst=1         settings, which give the block a node of its own
    -> {"service": ...}                     the client sends; any text
    <- {"service": ...}                     the client receives; "..." matches any value
    <- close 1001                           the gateway closes
    b: snorky.msgpack                       another client, and its encoding
    b -> {"service": ...}
    POST {"service": ...}                   a backend sends to the private port
    200 {"service": ...}                    and gets this answer
    redis-cli PUBLISH 'channel' 'message'   a backend publishes through Redis, by this or another command
    SIGTERM                                 sent to the node
    ```

    "$token" in a received line matches any value, and from then on only this one, also in sent lines.
    "TOKEN-OF-ann" in a sent line becomes a token of that identity, signed by the block's auth.hmac_secret.

Rules:
- A line that begins with blanks continues the line before. Text after `  # ` (two blanks before) is a comment.
- Consecutive lines received by one client may come in any order: replies and notifications have no common order.
- At the end every client sends the gateway a request: the answer must be the next message that it receives.
"""

import asyncio
import json
import re
import shlex
import signal
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import msgpack
from redis.asyncio import Redis

from tests.support.processes.nodes import NodeProcess
from tests.support.scenarios.tokens import hmac_token

__all__ = ["Block", "blocks_of", "converse"]

WITHIN_S = 30.0
_BLOCK = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_ANY = "..."


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block. where: PAGE:LINE. words: those after the language."""

    where: str
    language: str
    words: str
    text: str

    @property
    def program(self) -> str | None:
        """The example program that the block runs against, if it names one."""
        found = re.search(r"examples/\S+\.py", self.words)
        return None if found is None else found[0]

    @property
    def settings(self) -> dict[str, str]:
        """Settings that the block asks for, as environment variables."""
        pairs = re.findall(r"([a-z_.]+)=(\S+)", self.words)
        return {f"SNORKY_{name.upper().replace('.', '__')}": value for name, value in pairs}


def blocks_of(page: Path, *languages: str) -> list[Block]:
    """Find a page's fenced blocks in one of these languages, in order."""
    text = page.read_text()
    found = [
        Block(f"{page.name}:{text.count(chr(10), 0, match.start()) + 1}", *match.groups())
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if block.language in languages]


@dataclass
class _Peer:
    socket: aiohttp.ClientWebSocketResponse
    known: dict[str, Any]
    is_open: bool = True
    expected: list[Any] = field(default_factory=list)

    async def send(self, text: str) -> None:
        if self.socket.protocol == "snorky.msgpack":
            await self.socket.send_bytes(msgpack.packb(json.loads(text)))
        else:
            await self.socket.send_str(text)

    async def receive(self) -> Any:
        frame = await self.socket.receive(timeout=WITHIN_S)
        if frame.type is aiohttp.WSMsgType.TEXT:
            return json.loads(frame.data)
        if frame.type is aiohttp.WSMsgType.BINARY:
            return msgpack.unpackb(frame.data)
        self.is_open = False
        return f"close {frame.data}"

    async def settle(self, where: str) -> None:
        """Receive everything expected by now."""
        while self.expected:
            got = await self.receive()
            match = next((each for each in self.expected if _fits(each, got)), None)
            assert match is not None, f"{where}: came {got!r}, expected one of {self.expected!r}"
            self.expected.remove(match)
            _note(match, got, self.known)


async def converse(block: Block, node: NodeProcess, redis_port: int = 0) -> None:
    """Run one conversation. Raises AssertionError: a received line differs from the block."""
    protocols: dict[str, str] = {}
    peers: dict[str, _Peer] = {}
    known: dict[str, Any] = {}
    status, answer = 0, None
    async with aiohttp.ClientSession() as session:

        async def peer(name: str) -> _Peer:
            if name not in peers:
                offer = [protocols[name]] if name in protocols else []
                peers[name] = _Peer(await session.ws_connect(node.websocket_url, protocols=offer), known)
            return peers[name]

        async def settle() -> None:
            for each in peers.values():
                await each.settle(block.where)

        for written in _lines(block.text):
            if "$" in written:
                await settle()
            line = _filled(written, block, known)
            if match := re.match(r"(?:(\w+) )?<- (.*)", line):
                (await peer(match[1] or "a")).expected.append(_expectation(match[2]))
                continue
            await settle()
            if match := re.match(r"(?:(\w+) )?-> (.*)", line):
                await (await peer(match[1] or "a")).send(match[2])
            elif match := re.match(r"(\w+): (snorky\.\w+)", line):
                protocols[match[1]] = match[2]
            elif match := re.match(r"POST (.*)", line):
                url = f"http://127.0.0.1:{node.private_port}/backend"
                async with session.post(url, data=match[1]) as response:
                    status, answer = response.status, await response.json()
            elif match := re.match(r"(\d{3}) (.*)", line):
                expected = json.loads(match[2])
                assert status == int(match[1]) and _fits(expected, answer), (block.where, status, answer)
                _note(expected, answer, known)
            elif line.startswith("redis-cli "):
                async with Redis(port=redis_port) as redis:
                    await redis.execute_command(*shlex.split(line)[1:])
            elif line == "SIGTERM":
                node.signal(signal.SIGTERM)
            else:
                raise AssertionError(f"{block.where}: what is {line!r}?")
        await settle()
        for name, each in peers.items():
            if each.is_open and not block.settings:
                fence = {"service": "gateway", "message": {"command": "info", "callId": "fence"}}
                await each.send(json.dumps(fence))
                got = await each.receive()
                assert _fits("fence", got["message"].get("callId")), f"{block.where}: {name} got {got!r} as well"
        for each in peers.values():  # not before: the others may receive it
            await asyncio.wait_for(each.socket.close(), WITHIN_S)


def _lines(text: str) -> list[str]:
    joined = re.sub(r"\n[ \t]+", " ", text.strip())
    return [stripped for line in joined.splitlines() if (stripped := re.sub(r"(^|  )# .*$", "", line).strip())]


def _expectation(text: str) -> Any:
    return text if text.startswith("close ") else json.loads(text)


def _filled(line: str, block: Block, known: dict[str, Any]) -> str:
    """Insert known values of `"$name"`, and tokens."""

    def token(match: re.Match[str]) -> str:
        return hmac_token(match[1], secret=block.settings["SNORKY_AUTH__HMAC_SECRET"])

    line = re.sub(r"TOKEN-OF-(\w+)", token, line)
    return re.sub(r'"\$(\w+)"', lambda match: json.dumps(known[match[1]]) if match[1] in known else match[0], line)


def _note(expected: Any, got: Any, known: dict[str, Any]) -> None:
    """Store the values received where `"$name"` was expected."""
    if isinstance(expected, str) and expected.startswith("$"):
        known[expected[1:]] = got
    elif isinstance(expected, dict):
        for key, each in expected.items():
            _note(each, got[key], known)
    elif isinstance(expected, list):
        for each, found in zip(expected, got, strict=True):
            _note(each, found, known)


def _fits(expected: Any, got: Any) -> bool:
    if expected == _ANY or (isinstance(expected, str) and re.fullmatch(r"\$\w+", expected)):
        return True
    if isinstance(expected, dict) and isinstance(got, dict):
        return expected.keys() == got.keys() and all(_fits(expected[key], got[key]) for key in expected)
    if isinstance(expected, list) and isinstance(got, list):
        return len(expected) == len(got) and all(map(_fits, expected, got))
    return type(expected) is type(got) and bool(expected == got)
