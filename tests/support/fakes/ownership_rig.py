"""An ownership whose directory records its calls, waits at gates, and fails, as a test says."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from snorky.gateway import BrokerUnavailable, Entered, Member
from snorky.gateway.connection.connection import Connection
from snorky.gateway.presence.ownership import Ownership
from tests.support.fakes.fake_wire import JSON, FakeTransport

__all__ = ["OwnershipRig", "ScriptedDirectory"]


class ScriptedDirectory:
    """Records its calls. gates: what waits before it is done, by name. is_failing: everything raises."""

    def __init__(self) -> None:
        self.incarnation = "i1"
        self.calls: list[tuple[Any, ...]] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.is_failing = False
        self.is_claimed = True
        self.is_stopped = False

    async def start(self, asserter: Any) -> None: ...

    async def stop(self) -> None:
        self.is_stopped = True

    async def enter(
        self,
        roster: str,
        serial: int,
        identity: str,
        *,
        entry: str = "",
        data: Any = None,
        lists_members: bool = True,
    ) -> Entered:
        await self._do("enter", roster, serial, identity, entry, data)
        return Entered(True, [], 1)

    async def update(self, roster: str, serial: int, *, entry: str = "", data: Any, notice: Any = None) -> bool:
        await self._do("update", roster, serial, entry, data, notice)
        return False

    async def leave(self, roster: str, serial: int, *, entry: str = "") -> bool:
        await self._do("leave", roster, serial, entry)
        return True

    async def claim(self, names: str, name: str, serial: int, identity: str | None = None) -> bool:
        await self._do("claim", names, name, serial, identity)
        return self.is_claimed

    async def release(self, names: str, name: str, serial: int) -> bool:
        await self._do("release", names, name, serial)
        return True

    async def disowned(self, serial: int) -> None:
        await self._do("disowned", serial)

    async def _do(self, *call: Any) -> None:
        if gate := self.gates.get(call[0]):
            await gate.wait()
        if self.is_failing:
            raise BrokerUnavailable("scripted")
        self.calls.append(call)

    @property
    def asked(self) -> list[str]:
        return [call[0] for call in self.calls]


class OwnershipRig:
    """An ownership with connections."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("snorky.gateway.presence.ownership.RETRY_S", 0.001)
        self.directory = ScriptedDirectory()
        self.here: set[Connection] = set()
        self.notice: Callable[..., Any] = lambda *_: None
        directory: Any = self.directory
        self.ownership = Ownership("n", directory, lambda *each: self.notice(*each), self.here.__contains__)

    def connection(self, serial: int = 1, identity: str | None = "bob") -> Connection:
        connection = Connection(FakeTransport(), JSON, node_id="n", serial=serial)
        connection.identity = identity
        self.here.add(connection)
        return connection

    def end(self, connection: Connection) -> None:
        connection.mark_closed()
        self.here.discard(connection)
        self.ownership.forget(connection)

    def gate(self, name: str) -> asyncio.Event:
        return self.directory.gates.setdefault(name, asyncio.Event())

    @property
    def members(self) -> list[tuple[str, Member]]:
        return list(self.ownership.local_members())

    @property
    def names(self) -> list[tuple[str, str, int, str | None]]:
        return list(self.ownership.local_names())
