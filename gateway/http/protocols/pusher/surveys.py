"""Surveys: what the HTTP API asks all nodes about channels: which have subscribers, and how many.

Rules:
- A question is a control order, which all nodes read and answer. Orders are limited, and `terminate_connections` needs
  them too. So a node counts with one question at a time and lists with one, PER_S together, each for as many channels
  as fit into an order or its answers.
- Callers share a question that has not begun. So an answer is never older than the call, and many callers cost as much
  as a few.
- An answer contains only the nodes that reply within a second.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from snorky.gateway.errors import LimitExceeded, SnorkyError
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import json_size
from snorky.gateway.sdk.control import CHANNELS_MAX, Found

__all__ = ["LIST_MAX", "Surveys", "TooManyChannels"]

LIST_MAX: Final = 50_000  # channels of one list
PER_S: Final = (
    20.0  # 1,200 a minute; the cluster stores 10,000 orders for a minute. Answers take longer: about 4 a second
)
NAMES_MAX: Final = 500  # of one question: callers of a longer one would give up before its answer
NAMES_BYTES: Final = 1_600  # of an order, which has at most 2,048

_Counts = dict[str, int]  # of subscribers, by channel


class TooManyChannels(Exception):
    """A list would have more than LIST_MAX channels."""


class _Question:
    """A question of some callers. names: of channels to count; counted: those that all nodes were asked about."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.counted: _Counts = {}
        self.callers = 0
        self.answer: _Counts | None = None
        self.error: Exception | None = None


class _Questions:
    """Questions of one kind, one after another. ask: asks all nodes about a service and a prefix of names."""

    def __init__(self, ask: Callable[[str, str, _Question], Awaitable[_Counts]]) -> None:
        self._ask = ask
        self._turn = asyncio.Lock()
        self._waiting: dict[tuple[str, str], _Question] = {}  # that have not begun

    async def answer(self, service: str, prefix: str = "", names: Sequence[str] = ()) -> _Counts:
        """Ask, or share a question that has not begun. If its first caller is cancelled, the next one asks."""
        key = service, prefix
        question = self._waiting.setdefault(key, _Question())
        if question.names and len(question.names) + len(names) > NAMES_MAX:
            raise LimitExceeded("control_calls", "Too many channels to count", code="rate_limited", retry_after_ms=1000)
        question.names.update(names)
        question.callers += 1
        try:
            async with self._turn:
                if question.answer is None and question.error is None:
                    if self._waiting.get(key) is question:
                        del self._waiting[key]
                    try:
                        question.answer = await self._ask(service, prefix, question)
                    except (SnorkyError, TooManyChannels) as error:
                        question.error = error
        finally:
            question.callers -= 1
            if not question.callers and self._waiting.get(key) is question:
                del self._waiting[key]  # all have given up
        if question.answer is None:
            raise question.error or AssertionError
        return question.answer


class Surveys:
    """Asks for one node. node: called when needed."""

    def __init__(self, node: Callable[[], Node]) -> None:
        self._node = node
        self._counting = _Questions(self._count)
        self._listing = _Questions(self._list)
        self._next_s = 0.0  # loop time of the next order

    async def subscribers(self, service: str, channels: Sequence[str]) -> dict[str, int]:
        """Count the subscribers of channels. Raises BrokerUnavailable, LimitExceeded."""
        counts = await self._counting.answer(service, names=channels)
        return {channel: counts.get(channel, 0) for channel in channels}

    async def listed(self, service: str, prefix: str) -> dict[str, int]:
        """Count the subscribers of all channels whose names begin with a prefix.

        The result is shared: callers must not change it. Raises TooManyChannels; and as `subscribers`.
        """
        return await self._listing.answer(service, prefix)

    async def _count(self, service: str, _prefix: str, question: _Question) -> _Counts:
        for names in _portions(sorted(question.names - question.counted.keys())):  # a caller may have given up
            page = _counts(await self._look(service, names=names, limit=len(names)))
            question.counted |= {name: page.get(name, 0) for name in names}
        return question.counted

    async def _list(self, service: str, prefix: str, _question: _Question) -> _Counts:
        found: _Counts = {}
        after: str | None = ""
        while after is not None:
            if len(found) >= LIST_MAX:
                raise TooManyChannels
            page = await self._look(service, pattern=f"{prefix}*", after=after, limit=CHANNELS_MAX)
            found |= _counts(page)
            after = page.last
        return found

    async def _look(
        self, service: str, *, limit: int, pattern: str | None = None, names: Sequence[str] = (), after: str = ""
    ) -> Found:
        """Ask all nodes, not before this node's next turn."""
        loop = asyncio.get_running_loop()
        at_s = max(self._next_s, loop.time())
        self._next_s = at_s + 1 / PER_S
        await asyncio.sleep(at_s - loop.time())
        control = self._node().control
        return await control.look("channels", service=service, pattern=pattern, names=names, after=after, limit=limit)


def _counts(page: Found) -> _Counts:
    """Return the counts of a page; clients of other protocols also have channels whose names are no texts."""
    return {each["channel"]: each["subscribers"] for each in page.entries if isinstance(each["channel"], str)}


def _portions(names: Sequence[str]) -> Iterator[Sequence[str]]:
    """Divide names so that each part fits into an order."""
    part: list[str] = []
    size = 0
    for name in names:
        own = json_size(name) + 1
        if part and size + own > NAMES_BYTES:
            yield part
            part, size = [], 0
        part.append(name)
        size += own
    if part:
        yield part
