"""Refresher: asks rules and hooks again about a connection, when the backend orders it.

    new claims and expiry -> the hook `connect` -> rules -> for each subscription that is left, the hooks of its service

If a hook gives no usable answer, the connection or the subscription remains.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Final

import structlog

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.connection.connection import Connection
from snorky.gateway.contracts.control import ControlOrder
from snorky.gateway.errors import CloseCode, HookRefused, HookUnavailable
from snorky.gateway.sdk.service import Service

__all__ = ["RECHECKED_PER_TURN", "Refresher", "recheck_all", "recheck_by"]

RECHECKED_PER_TURN: Final = 1_000  # connections in one turn of the event loop
RECHECK_TURN_S: Final = 0.01  # at most; a connection may have a thousand channels

_log = structlog.get_logger("snorky.control")


def recheck_by(services: Iterable[Service], connection: Connection) -> None:
    """Have each service end what its rules no longer permit to a connection."""
    for service in services:
        try:
            service.recheck(connection)
        except Exception:  # a service's code: whatever it raises, the client must not keep more than it may
            _log.exception("rights not looked at again; closing the connection", service=service.name)
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")


async def recheck_all(connections: Iterable[Connection], recheck: Callable[[Connection], object]) -> None:
    """Look at the rights of many connections again, after rules have changed; other tasks get turns meanwhile."""
    began_s = perf_counter()
    for count, connection in enumerate(connections, 1):
        recheck(connection)
        if count % RECHECKED_PER_TURN == 0 or perf_counter() - began_s > RECHECK_TURN_S:
            await asyncio.sleep(0)
            began_s = perf_counter()


class Refresher:
    """services_of: those that a connection may use; none if it is not open."""

    def __init__(
        self,
        auth: Authenticator,
        services_of: Callable[[Connection], Iterable[Service]],
        recheck: Callable[[Connection], object],
    ) -> None:
        self._auth = auth
        self._services_of = services_of
        self._recheck = recheck

    async def refresh(self, connection: Connection, order: ControlOrder) -> bool:
        """Carry out an order on a connection. False: it has closed, or it has no identity to give claims to."""
        if connection.is_closed:
            return False
        if order.claims is not None or order.expires_in_s is not None:
            if not self._auth.renew(connection, order.claims, order.expires_in_s):
                return False
        try:
            await self._auth.ask_again(connection)
        except HookRefused:
            connection.close(CloseCode.DISCONNECTED, "No longer permitted")
            return True
        except HookUnavailable as error:
            _log.info("hook gave no answer; the connection stays", connection=connection.id, reason=error.reason)
        if connection.is_closed:
            return True
        self._recheck(connection)
        for service in self._services_of(connection):
            await self._guarded(connection, service.recheck_hooks(connection))
        return True

    @staticmethod
    async def _guarded(connection: Connection, asking: Awaitable[None]) -> None:
        try:
            await asking
        except Exception:  # a service's code: whatever it raises, the client must not keep more than it may
            _log.exception("rights not looked at again; closing the connection", connection=connection.id)
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
