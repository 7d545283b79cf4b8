"""RedisHistory: what channels keep, in Redis streams. Two connections: publications never wait behind what is read.

All keys of a channel lie in its slot. A read takes as many round trips as it takes pages; each page is verified
to follow the one before, so what is trimmed meanwhile is noticed.
"""

import asyncio
import secrets
from typing import Final

from gateway.history import History
from gateway.metrics import Metrics
from gateway.publication import Position, Publication
from gateway.redis.commander import Commander
from gateway.redis.names import state_key, stream_key
from gateway.redis.scripting import Call, Scripts
from gateway.redis.sequencer import KEEP_S, Sequencer
from gateway.redis.target import RedisTarget
from gateway.rules import Rules

__all__ = ["RedisHistory"]

PAGE: Final = 200  # entries; Redis does nothing else meanwhile
PAGE_MAX_BYTES: Final = 1 << 20


class RedisHistory:
    """Fulfils `gateway.history.Keeper` (its docstrings are the contract). prefix, node_id: as the broker's."""

    def __init__(
        self,
        target: RedisTarget,
        *,
        prefix: str,
        node_id: str,
        metrics: Metrics,
        publish_timeout_s: float = 5.0,
        read_timeout_s: float = 5.0,
        dial_timeout_s: float = 2.0,
        page: int = PAGE,
    ) -> None:
        client_name = f"snorky:{node_id}".replace(" ", "_")
        self._prefix = prefix
        self._page = page
        self._sequencer = Sequencer(
            target,
            prefix=prefix,
            client_name=f"{client_name}:sequencer",
            metrics=metrics,
            publish_timeout_s=publish_timeout_s,
            dial_timeout_s=dial_timeout_s,
        )
        self._commander = Commander(
            target,
            role="history",
            client_name=f"{client_name}:history",
            metrics=metrics,
            timeout_s=read_timeout_s,
            dial_timeout_s=dial_timeout_s,
        )
        self._scripts = Scripts(self._commander)
        self._rules: dict[str, Rules] = {}  # by service

    def set_rules(self, service: str, rules: Rules) -> None:
        self._rules[service] = rules

    async def start(self) -> None:
        self._sequencer.start()
        self._commander.start()

    async def stop(self) -> None:
        await self._sequencer.stop()
        await self._commander.stop()

    def publish(
        self, key: str, payload: bytes, history: History, *, once: str | None = None
    ) -> "asyncio.Future[Position]":
        return self._sequencer.sequence(key, payload, history, once)

    async def read(self, key: str, since: Position) -> list[Publication] | None:
        found: list[Publication] = []
        last: int | None = None
        while last is None or since.offset < last:
            answer = await self._page_of(key, since)
            if not answer:
                return None
            if last is None:
                last = int(answer[0])  # what comes after is not asked for: else a busy channel is read for ever
            for tag, payload in zip(answer[1::2], answer[2::2], strict=True):
                position = Position(since.epoch, since.offset + 1, tag.decode())
                found.append(Publication(payload, position, since.tag))
                since = position
        return found

    async def position(self, key: str) -> Position:
        arguments = [secrets.token_hex(12).encode(), b"%d" % round(KEEP_S * 1000)]
        (answer,) = await self._scripts.run(Call("position", self._keys(key), arguments))
        return Position.parse(answer.decode())

    async def _page_of(self, key: str, since: Position) -> list[bytes]:
        arguments = [since.epoch.encode(), b"%d" % since.offset, since.tag.encode()]
        arguments += [b"%d" % self._page, b"%d" % PAGE_MAX_BYTES]
        (answer,) = await self._scripts.run(Call("read", self._keys(key), arguments))
        page: list[bytes] = answer
        return page

    def _keys(self, key: str) -> list[bytes]:
        return [state_key(self._prefix, key), stream_key(self._prefix, key)]
