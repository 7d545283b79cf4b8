"""Crowd: many clients in one process, and queries over all of them."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Self

import aiohttp

from tests.fault_lab.client import LabClient
from tests.fault_lab.journal import Journal
from tests.support.processes.tools import eventually

__all__ = ["Crowd"]


class Crowd:
    """Clients that each subscribe to some of the channels. where: returns a URL for an attempt."""

    def __init__(self, where: Callable[[], str], channels: Sequence[str], *, seed: int, is_recovering: bool) -> None:
        self.members: list[LabClient] = []
        self._where = where
        self._channels = channels
        self._rng = random.Random(seed)
        self._is_recovering = is_recovering
        self._tasks: dict[LabClient, asyncio.Task[None]] = {}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.dismiss(*self._tasks)
        assert self._session is not None
        await self._session.close()

    def add(
        self,
        count: int,
        *,
        channels_each: int,
        name: str = "client",
        identities: bool = False,
        where: Callable[[], str] | None = None,
        comes_back: bool = True,
        plain_channel: str | None = None,
    ) -> list[LabClient]:
        """Add clients, every third of which speaks MessagePack.

        identities: they are residents. plain_channel: they subscribe to this one instead, without recovery. Clients
        that do not reconnect are not members: nothing waits for them, and the checker ignores them.
        """
        assert self._session is not None
        added = []
        for number in range(count):
            start = self._rng.randrange(len(self._channels))
            channels = [self._channels[(start + step) % len(self._channels)] for step in range(channels_each)]
            if plain_channel is not None:
                channels = [plain_channel]
            client = LabClient(
                self._session,
                where or self._where,
                f"{name}-{number}",
                channels,
                rng=random.Random(self._rng.random()),
                is_recovering=self._is_recovering and plain_channel is None,
                speaks_msgpack=number % 3 == 2,
                identity=f"{name}-{number}" if identities else None,
                comes_back=comes_back,
            )
            self._tasks[client] = asyncio.create_task(client.run())
            added.append(client)
        if comes_back:
            self.members += added
        return added

    async def dismiss(self, *clients: LabClient) -> None:
        """Disconnect clients and remove them."""
        tasks = [self._tasks.pop(client) for client in clients]
        for task in tasks:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        self.members = [member for member in self.members if member not in clients]
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def mingle(self, share: float, *, within_s: float) -> None:
        """Reconnect a share of the members, so that restarted nodes get clients again."""
        before = {member: member.drops for member in self._rng.sample(self.members, int(share * len(self.members)))}
        for member in before:
            member.hang_up()

        async def all_dropped() -> bool:
            return all(member.drops > drops for member, drops in before.items())

        await eventually(all_dropped, within_s=within_s, what="every client that hung up has seen its connection end")
        await self.subscribed(within_s=within_s)

    @asynccontextmanager
    async def away(self, *clients: LabClient, within_s: float = 10.0) -> AsyncIterator[None]:
        """Keep these disconnected until the block ends, or until `come_back` is called on them."""
        try:
            for client in clients:
                client.go_away()

            async def all_gone() -> bool:
                for client in clients:
                    client.hang_up()  # it may have been connecting
                return not any(client.is_connected for client in clients)

            await eventually(all_gone, within_s=within_s, what="every client that goes away is disconnected")
            yield
        finally:
            for client in clients:
                client.come_back()

    def mark(self) -> None:
        """Start new journals. Raises the exception that ended a client."""
        for client, task in self._tasks.items():
            if task.done() and not task.cancelled() and (error := task.exception()) is not None:
                raise error
            client.mark()

    @property
    def journals(self) -> list[Journal]:
        """Journals of all members."""
        return [journal for member in self.members for journal in member.journals.values()]

    @property
    def residents(self) -> list[LabClient]:
        return [member for member in self.members if member.identity is not None]

    @property
    def handshakes_s(self) -> list[float]:
        """Times of all connects."""
        return sorted(moment for member in self.members for moment in member.handshakes_s)

    async def subscribed(self, *clients: LabClient, within_s: float) -> None:
        """Wait until these, or all members, are subscribed. Raises AssertionError."""
        chosen = clients or tuple(self.members)

        async def all_there() -> bool:
            missing = [client.name for client in chosen if not client.is_subscribed]
            return not missing

        try:
            await eventually(all_there, within_s=within_s, what="all clients are subscribed")
        except AssertionError:
            missing = [client for client in chosen if not client.is_subscribed]
            errors = Counter(error for client in missing for error in client.errors[-1:])
            names = ", ".join(client.name for client in missing[:5])
            connected = sum(client.is_connected for client in missing)
            text = (
                f"{len(missing)} of {len(chosen)} clients not subscribed within {within_s} s ({connected} connected): "
            )
            raise AssertionError(f"{text}{names}; their errors: {dict(errors)}") from None

    def has_reached(self, numbers: Mapping[str, int]) -> bool:
        """Return whether every member has these numbers, or later ones, of its channels."""
        return all(
            member.highest[channel] >= numbers.get(channel, -1)
            for member in self.members
            for channel in member.channels
        )

    async def reached(self, fences: Mapping[str, int], within_s: float) -> bool:
        """Wait until every member has the fence of each of its channels; False: not within the time."""

        async def all_reached() -> bool:
            return self.has_reached(fences)

        try:
            await eventually(all_reached, within_s=within_s, what="all clients have the fences")
        except AssertionError:
            return False
        return True
