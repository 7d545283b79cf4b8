"""ControlViews: what a backend may look at: nodes, connections, channels, presence, history; and the audit of calls.

Replies are pages. A page has at most `limit` entries, and the `next` to send as `after` for the following page; null =
it is the last one. `missing` are nodes that did not answer within a second: their entries are not in the page.

Every call writes one line to the log `snorky.audit`: by whose key, what, on whom, with which outcome.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import Any, Final, Literal

import structlog

from snorky.gateway import Compound, Connection, Rosters, Service, SnorkyError, channel_name, history_of, identity_name
from snorky.services.pubsub.clients import MEMBERS_MAX, clients_page
from snorky.services.pubsub.history import read_history
from snorky.services.pubsub.parameters import check_flag, limit_of, order_of, position_of
from snorky.services.pubsub.replies import NOTHING_TO_RECOVER
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command

__all__ = ["ControlViews", "invalid", "name_of"]

LIMIT_DEFAULT: Final = 100
LIMIT_MAX: Final = 200
AFTER_MAX_BYTES: Final = 512
_OF_INPUT: Final = frozenset({"invalid_params", "invalid_channel", "unknown_command"})

_log = structlog.get_logger("snorky.audit")


class ControlViews(RPCService):
    """Commands `nodes`, `connections`, `channels`, `presence`, `history` and `historyRemove`."""

    @rpc_command
    async def nodes(self, request: Request, after: Any = None, limit: Any = LIMIT_DEFAULT) -> dict[str, Any]:
        """List the nodes, with their numbers of connections, subscriptions and channels."""
        return await self._page(request, "nodes", "nodes", after, limit)

    @rpc_command
    async def connections(
        self, request: Request, identity: Any, after: Any = None, limit: Any = LIMIT_DEFAULT
    ) -> dict[str, Any]:
        """List the connections of an identity."""
        return await self._page(request, "connections", "connections", after, limit, identity=name_of(identity))

    @rpc_command
    async def channels(
        self,
        request: Request,
        pattern: Any = "*",
        service: Any = "pubsub",
        after: Any = None,
        limit: Any = LIMIT_DEFAULT,
    ) -> dict[str, Any]:
        """List the channels of a service that have subscribers and match a pattern, with their number."""
        if not isinstance(pattern, str) or len(pattern.encode(errors="replace")) > AFTER_MAX_BYTES:
            raise invalid()
        wanted = {"service": self._service(service).name, "pattern": pattern}
        return await self._page(request, "channels", "channels", after, limit, **wanted)

    @rpc_command
    async def presence(
        self,
        request: Request,
        channel: Any,
        service: Any = "pubsub",
        after: Any = None,
        limit: Any = LIMIT_DEFAULT,
        connections: Any = False,
    ) -> dict[str, Any]:
        """List the identities in a channel's roster, a client without one by its ID; or all its connections."""
        rosters, first, count = (
            Rosters(self.cluster, self._service(service).name),
            _after(after),
            _limit(limit, MEMBERS_MAX if connections is True else LIMIT_MAX),
        )
        check_flag(connections)
        with self._audited(request, service=service, channel=channel_name(channel)) as results:
            census = await rosters.census(channel)
            if connections:
                results["members"] = len((reply := clients_page(census.members, first, count))["connections"])
                return reply
            later = sorted(identity for identity in {member.identity for member in census.members} if identity > first)
            results["members"] = len(later[:count])
        return {"members": later[:count], "next": later[count - 1] if len(later) > count else None}

    @rpc_command
    async def history(
        self,
        request: Request,
        channel: Any,
        service: Any = "pubsub",
        since: Any = None,
        limit: Any = LIMIT_DEFAULT,
        order: Any = None,
    ) -> Compound | dict[str, Any]:
        """Reply messages of a channel, as pub/sub's `history` does; also `info` and `tags` of those that have them."""
        position, asked, found = position_of(since), order_of(order), self._service(service)
        count, name = limit_of(limit, 1 if asked is None else 0), channel_name(channel)
        with self._audited(request, service=service, channel=name) as results:
            if found.topics.promised(channel, history_of(found.rules.find(name))) is None:
                return NOTHING_TO_RECOVER
            reply, count = await read_history(found.topics, channel, position, count, asked, has_attributes=True)
            results["messages"] = count
        return reply

    @rpc_command(name="historyRemove")
    async def history_remove(self, request: Request, channel: Any, service: Any = "pubsub") -> None:
        """Remove the messages that a channel retains; its subscribers notice nothing."""
        found, name = self._service(service), channel_name(channel)
        with self._audited(request, service=service, channel=name):
            await self.cluster.channels.remove_history(found.name, channel)

    async def _page(
        self,
        request: Request,
        name: str,
        what: Literal["nodes", "connections", "channels"],
        after: Any,
        limit: Any,
        **wanted: str,
    ) -> dict[str, Any]:
        first, count = _after(after), _limit(limit)
        with self._audited(request, **wanted) as results:
            try:
                found = await self.cluster.control.look(what, after=first, limit=count, **wanted)
            except ValueError:
                raise invalid() from None
            results |= {"entries": len(found.entries), "missing": " ".join(found.missing)}
        return {name: found.entries, "missing": found.missing, "next": found.last}

    def _service(self, name: Any) -> Service:
        """Find a service of this node. Raises RPCError."""
        found = self.cluster.find_service(name) if isinstance(name, str) else None
        if not isinstance(found, Service):
            raise RPCError("There is no such service", "invalid_params")
        return found

    def on_refused_backend(self, connection: Connection, message: Any) -> None:
        """Audit a call that the key of a backend does not permit."""
        name = message.get("command") if isinstance(message, dict) else None
        command = self._commands.get(name) if isinstance(name, str) else None
        known = "unknown" if command is None else command.name  # names that a backend invents are no label values
        self._audit(Request(connection, self.name, known, None, perf_counter()), "not_authorized")

    # -- audit -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _audited(self, request: Request, **facts: Any) -> Iterator[dict[str, Any]]:
        """Log and count the call that the block executes. facts: whom it is about. Yields a dict for its results."""
        results: dict[str, Any] = {}
        outcome = "internal"
        try:
            yield results
            outcome = "incomplete" if results.get("missing") else "ok"
        except SnorkyError as error:
            outcome = error.code
            raise
        finally:
            if outcome not in _OF_INPUT:  # `_refuse` logs these
                self._audit(request, outcome, **facts, **results)

    def _refuse(self, request: Request, error: BaseException) -> None:
        if isinstance(error, SnorkyError) and error.code in _OF_INPUT:
            self._audit(request, error.code)
        super()._refuse(request, error)

    def _audit(self, request: Request, outcome: str, **facts: Any) -> None:
        known = {name: value for name, value in facts.items() if value not in (None, "")}
        self.cluster.metrics.control_calls.labels(request.command, outcome).inc()
        _log.info("control", by=request.backend_key or "none", command=request.command, outcome=outcome, **known)


def name_of(identity: Any) -> str:
    """Return the text of an identity. Raises RPCError."""
    try:
        return identity_name(identity)
    except ValueError:
        raise invalid() from None


def invalid() -> RPCError:
    """Make the error of a wrong parameter."""
    return RPCError("Invalid params", "invalid_params")


def _after(after: Any) -> str:
    if after is None:
        return ""
    if not isinstance(after, str) or not 0 < len(after.encode(errors="replace")) <= AFTER_MAX_BYTES:
        raise invalid()
    return after


def _limit(limit: Any, most: int = LIMIT_MAX) -> int:
    if isinstance(limit, bool) or not isinstance(limit, int) or not 1 <= limit <= most:
        raise invalid()
    return limit
