"""RedisHistory: the histories of channels, in Redis streams. Two connections, so that reads do not delay publications.

Redis limits the size of each entry and of each page before it sends them: a reply above the limit of a connection would
close the connection, for all channels, at every attempt.

All keys of a channel are in one slot. A read takes one round trip per page. Each page is verified to follow the
previous one, so entries that are trimmed meanwhile are detected.
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.config.rules.channel_rules import ChannelRule, Rules
from snorky.gateway.contracts.history import History, Order
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.publication import Position, Publication, Selector, rest_of_header, tombstone
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.history.appender import KEEP_S, Appender
from snorky.gateway.redis.history.function_library import Functions
from snorky.gateway.redis.keys import state_key, stream_key

__all__ = ["RedisHistory"]

PAGE: Final = 200  # entries; Redis is blocked while it reads a page
PAGE_MAX_BYTES: Final = 1 << 20
CHECKS_MAX: Final = 3  # of the function library: the first, one after a repair, and one in reserve
_COMMANDS: Final = {"newest": b"XREVRANGE", "oldest": b"XRANGE"}
FIRST_MAX_BYTES: Final = 131_072  # read after a position: a client at 20 KB/s gets it before its request times out


class RedisHistory:
    """Implements `HistoryStore` (its docstrings are the contract). prefix: same as the broker's.

    appender, commands: connections to one Redis; this class starts and stops them. page: entries per read.
    payload_max_bytes: an entry with a larger payload is read as a tombstone.
    """

    def __init__(
        self,
        appender: Appender,
        commands: Commands,
        *,
        prefix: str,
        metrics: Metrics,
        page: int = PAGE,
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
    ) -> None:
        self._prefix = prefix
        self._page = page
        self._payload_max = b"%d" % payload_max_bytes
        self._appender = appender
        self._commands = commands
        self._scripts = Scripts(self._commands)
        self.functions = Functions(self._commands, self._scripts, prefix=prefix, metrics=metrics)

    def set_rules(self, service: str, rules: Rules[ChannelRule]) -> None:
        self.functions.set_rules(service, rules)

    @property
    def has_other_rules(self) -> bool:
        return self.functions.has_other_rules

    def promised(self, service: str, name: str, own: History | None) -> History | None:
        return self.functions.promised(service, name, own)

    async def start(self) -> None:
        self._appender.start()
        self.functions.start()
        self._commands.start()

    async def stop(self) -> None:
        await self.functions.stop()
        await self._appender.stop()
        await self._commands.stop()

    def publish(
        self,
        key: str,
        payload: bytes,
        history: History,
        *,
        once: str | None = None,
        to: Selector | None = None,
        attributes: bytes = b"",
    ) -> "asyncio.Future[Position]":
        return self._appender.append(key, payload, history, once, rest_of_header(attributes, to))

    def publish_once(self, key: str, payload: bytes, once: str) -> "asyncio.Future[None]":
        return self._appender.publish_once(key, payload, once)

    async def read(
        self, key: str, since: Position, *, max_entries: int = 0, max_bytes: int = 0, is_away: bool = False
    ) -> list[Publication] | None:
        if not is_away:
            return await self._all_after(key, since, max_entries, max_bytes, is_away=False)
        return await self._while_sound(key, lambda: self._all_after(key, since, max_entries, max_bytes, is_away=True))

    async def _all_after(
        self, key: str, since: Position, max_entries: int, max_bytes: int, *, is_away: bool
    ) -> list[Publication] | None:
        found: list[Publication] = []
        size = 0
        last: int | None = None
        while last is None or since.offset < last:
            page = await self._page_after(key, since, self._page, is_away=is_away)
            if page is None:
                return None
            if last is None:
                last = page[0]  # read only up to here: otherwise reading a busy channel might never end
                if max_entries and last - since.offset > max_entries:
                    return None
            for publication, position in page[1]:
                found.append(publication)
                size += publication.size
                since = position
            if max_bytes and size > max_bytes:
                return None
        return found

    async def recent(self, key: str, limit: int, since: Position | None = None) -> tuple[list[Publication], Position]:
        if since is not None:
            begin = since
            found = await self._while_sound(key, lambda: self._first_after(key, begin, limit))
            if found is not None:
                top = await self.position(key)  # asked in any case: it keeps the state of a channel that is only read
                return found, top if found or not limit else since  # if nothing follows it, it was the end
        publications, top = await self.page(key, limit, order="newest")
        return publications[::-1], top

    async def page(
        self, key: str, limit: int, *, order: Order, beyond: int | None = None
    ) -> tuple[list[Publication], Position]:
        if order == "newest" and beyond == 0:  # an end that Redis refuses
            limit, beyond = 0, None
        arguments = [b"%d" % limit, b"%d" % PAGE_MAX_BYTES, self._payload_max, self._appender.runs]
        arguments += [_COMMANDS[order], b"" if beyond is None else b"%d" % beyond]
        (answer,) = await self._scripts.run(Call("recent", self._keys(key), arguments))
        if not answer:
            begun = await self.position(key)
            # A client may have published since the read above; then read again.
            return ([], begun) if begun.offset == 0 else await self.page(key, limit, order=order, beyond=beyond)
        top = Position.parse(answer[0].decode())
        entries = zip(answer[1::4], answer[2::4], answer[3::4], answer[4::4], strict=True)
        publications = [
            _publication(payload, Position(top.epoch, int(offset), tag.decode()), previous.decode())
            for offset, previous, tag, payload in entries
        ]
        return publications, top

    async def locate(self, key: str, epoch: str, offset: int) -> Position | None:
        arguments = [epoch.encode(), b"%d" % offset, self._appender.runs]
        (answer,) = await self._scripts.run(Call("locate", self._keys(key), arguments))
        return None if answer is None else Position.parse(answer.decode())

    async def position(self, key: str) -> Position:
        (answer,) = await self._scripts.run(self._asking(key, is_beginning=True))
        return Position.parse(answer.decode())

    async def positions(self, keys: Iterable[str]) -> dict[str, Position]:
        wanted = list(keys)
        steps = [self._asking(key, is_beginning=False) for key in wanted]
        answers = await self._scripts.run(*steps, in_order=False) if steps else []
        found = zip(wanted, answers, strict=True)
        return {key: Position.parse(answer.decode()) for key, answer in found if answer is not None}

    def _asking(self, key: str, *, is_beginning: bool) -> Call:
        """Build the call that reads a channel's position. is_beginning: begin a history if there is none."""
        keep_ms, entropy = b"%d" % round(KEEP_S * 1000), secrets.token_hex(12).encode()
        arguments = [entropy, keep_ms, self._appender.runs, b"%d" % is_beginning]
        return Call("position", self._keys(key), arguments)

    async def remove(self, key: str) -> None:
        await self._scripts.run(command(b"DEL", stream_key(self._prefix, key)))

    async def note_lost(self, key: str) -> None:
        await self._scripts.run(Call("lost", [state_key(self._prefix, key)], []))

    async def _while_sound(
        self, key: str, read: Callable[[], Awaitable[list[Publication] | None]]
    ) -> list[Publication] | None:
        """Run a read for a client that was not subscribed; None also if the history may be incomplete.

        A foreign function library may have published without adding to the history. So this asks, while it reads, which
        library is loaded; if it has changed, it is checked and repaired, and the read is repeated.
        """
        state = state_key(self._prefix, key)
        for _ in range(CHECKS_MAX):
            asked, doubt = self.functions.ask(state), self.functions.doubt
            if doubt:
                await self._scripts.run(Call("lost", [state], [doubt]))  # recorded once: the state remembers the doubt
            found = await read()
            if await self.functions.is_sound(asked) and doubt == self.functions.doubt:
                return found
            await self.functions.look()
        return None

    async def _first_after(self, key: str, since: Position, limit: int) -> list[Publication] | None:
        """Read the first publications after a position, at least one; None = the position cannot be read from."""
        found: list[Publication] = []
        size, last, is_full = 0, since.offset + 1, False
        while since.offset < last and len(found) < limit and size < FIRST_MAX_BYTES and not is_full:
            count = min(self._page, limit - len(found))
            page = await self._page_after(key, since, count, FIRST_MAX_BYTES - size, is_away=True)
            if page is None:
                return None
            last, is_full = page[0], len(page[1]) < count
            for publication, position in page[1]:
                found.append(publication)
                size += publication.size
                since = position
        return found

    async def _page_after(
        self, key: str, since: Position, count: int, max_bytes: int = PAGE_MAX_BYTES, *, is_away: bool
    ) -> tuple[int, list[tuple[Publication, Position]]] | None:
        """Read the channel's last offset and one page; None = the position cannot be read from."""
        arguments = [since.epoch.encode(), b"%d" % since.offset, since.tag.encode()]
        arguments += [b"%d" % count, b"%d" % max_bytes, self._payload_max, b"%d" % is_away, self._appender.runs]
        (answer,) = await self._scripts.run(Call("read", self._keys(key), arguments))
        if not answer:
            return None
        found: list[tuple[Publication, Position]] = []
        fields: list[Any] = answer
        for tag, payload in zip(fields[1::2], fields[2::2], strict=True):
            position = Position(since.epoch, since.offset + 1, tag.decode())
            found.append((_publication(payload, position, since.tag), position))
            since = position
        return int(fields[0]), found

    def _keys(self, key: str) -> list[bytes]:
        return [state_key(self._prefix, key), stream_key(self._prefix, key)]


def _publication(entry: bytes | list[Any] | None, position: Position, previous_tag: str) -> Publication:
    """Make a publication, or a tombstone. entry: a payload, or a payload and attributes; None = see `read.lua`."""
    payload, attributes = entry if isinstance(entry, list) else (entry, b"")
    if payload is None:
        return tombstone(Publication(b"", position, previous_tag), "too_large")
    return Publication(payload, position, previous_tag, attributes=attributes)
