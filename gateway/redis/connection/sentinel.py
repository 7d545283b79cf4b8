"""Sentinels: asks the sentinels for the primary's address, and checks the role of that server.

Rules:
- All sentinels are asked at once, with a short timeout; the answers of a majority are enough. If they differ, the
  answer with the highest configuration epoch wins: a sentinel that was cut off may name a former primary.
- If only a minority answers, its answer is used. So a node that is cut off together with the former primary does not
  notice it; `min-replicas-to-write 1` makes that primary reject writes, which would be lost.
- A server whose ROLE is not master is not accepted as the primary.
- Concurrent callers share one request, and a result is reused for `max_age_s`.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import hiredis
import structlog

from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.resp import ConnectionLost, DialError, RespConnection, ask, command, dial

__all__ = ["Sentinels"]

ASK_TIMEOUT_S: Final = 0.5  # per sentinel, asked concurrently; connecting may take 2 s in all
ROLE_TIMEOUT_S: Final = 1.0

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class _View:
    """The answer of one sentinel. epoch: of its configuration; grows with every failover."""

    epoch: int
    host: str
    port: int


class Sentinels:
    """Finds a primary. servers: the sentinels, at least one. name: the primary's name in their configuration.

    primary: has the login for the primary; its host and port are replaced by the sentinels' answer.
    """

    def __init__(self, servers: Sequence[RedisTarget], *, name: str, primary: RedisTarget) -> None:
        self.name = name
        self._servers = servers
        self._primary = primary
        self._asking = asyncio.Lock()
        self._outcome: RedisTarget | DialError | None = None
        self._asked_at = 0.0  # loop time
        self.latest: RedisTarget | None = None  # the last primary found

    @property
    def addresses(self) -> str:
        """HOST:PORT of each sentinel, separated by commas."""
        return ",".join(server.address for server in self._servers)

    async def find(self, *, max_age_s: float = 0.0) -> RedisTarget:
        """Find the primary; reuses a result of the last `max_age_s`. Raises DialError: there is none, or no answer."""
        loop = asyncio.get_running_loop()
        called_at = loop.time()
        async with self._asking:
            if self._outcome is None or self._asked_at < called_at - max_age_s:
                try:
                    self._outcome = await self._ask()
                    self._note(self._outcome)
                except DialError as error:
                    self._outcome = error
                self._asked_at = loop.time()
        if isinstance(self._outcome, DialError):
            raise DialError(str(self._outcome))
        return self._outcome

    def _note(self, found: RedisTarget) -> None:
        if self.latest is not None and (found.host, found.port) != (self.latest.host, self.latest.port):
            _log.warning("another primary", name=self.name, redis=found.safe_url, before=self.latest.safe_url)
        self.latest = found

    async def _ask(self) -> RedisTarget:
        views, problems = await self._views()
        if not views:
            raise DialError(f"no sentinel names the primary of {self.name!r}: {'; '.join(problems)[:300]}")
        votes = Counter(views)
        best = max(votes, key=lambda view: (view.epoch, votes[view]))
        found = replace(self._primary, host=best.host, port=best.port)
        wire = await dial(found, name="snorky:role", timeout_s=ROLE_TIMEOUT_S)
        try:
            async with asyncio.timeout(ROLE_TIMEOUT_S):
                (role,) = await ask(wire, command(b"ROLE"))
        except TimeoutError:
            raise DialError(f"{found.safe_url} does not answer ROLE") from None
        finally:
            await _hang_up(wire)
        if not isinstance(role, list) or role[:1] != [b"master"]:
            raise DialError(f"{found.safe_url}, which the sentinels name, is no primary: {str(role)[:100]}")
        return found

    async def _views(self) -> tuple[list[_View], list[str]]:
        """Ask all until a majority has answered. Returns the answers, and the problems."""
        views: list[_View] = []
        problems: list[str] = []
        tasks = [asyncio.create_task(self._view(server)) for server in self._servers]
        try:
            for done in asyncio.as_completed(tasks):
                try:
                    views.append(await done)
                except DialError as error:
                    problems.append(str(error))
                if len(views) > len(tasks) // 2:
                    break
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return views, problems

    async def _view(self, server: RedisTarget) -> _View:
        wire: RespConnection | None = None
        name = self.name.encode()
        try:
            async with asyncio.timeout(ASK_TIMEOUT_S):
                wire = await dial(server, name="snorky:sentinels", timeout_s=ASK_TIMEOUT_S)
                # this command returns the new address even while a failover is still in progress
                address, state = await ask(
                    wire,
                    command(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name),
                    command(b"SENTINEL", b"MASTER", name),
                )
        except (TimeoutError, DialError) as error:
            reason = str(error) or f"no answer within {ASK_TIMEOUT_S:g} s"
            raise DialError(f"{server.address}: {reason}") from error
        finally:
            if wire is not None:
                await _hang_up(wire)
        return _read_view(address, state, server.address)


def _read_view(address: Any, state: Any, where: str) -> _View:
    """Decode a sentinel's answers. Raises DialError: it does not know the name, or is not a sentinel."""
    if address is None:
        raise DialError(f"{where}: does not know that name")
    try:
        if isinstance(address, hiredis.ReplyError):
            raise address
        host, port = address
        known = dict(zip(state[::2], state[1::2], strict=True)) if isinstance(state, list) else {}  # {}: denied by ACL
        return _View(int(known.get(b"config-epoch", 0)), host.decode(), int(port))
    except (hiredis.ReplyError, AttributeError, TypeError, ValueError) as error:
        raise DialError(f"{where}: {error}") from error


async def _hang_up(wire: RespConnection) -> None:
    wire.close(ConnectionLost("asked"))
    await wire.wait_closed()
