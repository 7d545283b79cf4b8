"""The HTTP API of Centrifugo's server, `POST /api/METHOD`, for its backend libraries. On the private port.

Each method is one or more calls of the backend's services `pubsub_backend` and `control`, so keys, their services and
the audit log apply. A failure is HTTP 200 with `{"error": {"code", "message"}}`; with the header
`X-Centrifugo-Error-Mode: transport` it has an HTTP status.
"""

import asyncio
import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec
import structlog
from aiohttp import web

from snorky.gateway.errors import InvalidMessage, ServiceNotPermitted, UnknownService
from snorky.gateway.http.backend.routes import BackendHandler, Sender
from snorky.gateway.http.protocols.centrifuge import replies
from snorky.gateway.http.protocols.centrifuge.codes import ErrorCode, error, error_of
from snorky.gateway.protocol.attributes import ATTRIBUTES
from snorky.gateway.protocol.codec import Envelope, decode_json, encode_json

__all__ = ["CentrifugeAPI", "key_in"]

_log = structlog.get_logger("snorky.centrifuge")

PUBLISHING: Final = "pubsub_backend"
CONTROL: Final = "control"
HISTORY_MAX: Final = 300
PAGE: Final = 200  # entries of a call of `control`
MEMBERS_PAGE: Final = 5_000  # each page reads the whole roster
CALLS_MAX: Final = 5_000  # of services, for one request
PARALLEL: Final = 16  # commands of a batch
TIMEOUT_S: Final = 20.0  # of one request: a supervisor waits a little longer
LIST_MAX: Final = 50_000  # channels, nodes or clients in one reply
COMMANDS_MAX: Final = 1_000  # of one batch, and channels of one broadcast
_STATUSES: Final = {102: 404, 104: 404, 107: 400, 108: 400, 112: 416, 113: 409}  # 500 for others


class _Failed(Exception):
    """A method failed. error: of the reply."""

    def __init__(self, error: Mapping[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


@dataclass(frozen=True, slots=True)
class _Caller:
    """Calls commands of the private services as one sender."""

    backend: BackendHandler
    sender: Sender
    calls: list[str] = field(default_factory=list)  # so far

    async def call(self, service: str, command: str, **params: Any) -> Any:
        """Return the data of the response. Raises _Failed."""
        self.calls.append(command)
        if len(self.calls) > CALLS_MAX:
            raise _Failed(error(ErrorCode.LIMIT_EXCEEDED))
        kept = {name: value for name, value in params.items() if value is not None or name == "message"}
        envelope = Envelope(service, {"command": command, "params": kept, "callId": 1})
        try:
            # without the limits of a message: it contains many
            reply: Any = msgspec.json.decode(await self.backend.reply_to(envelope, self.sender))
        except UnknownService:
            raise _Failed(error(ErrorCode.NOT_AVAILABLE)) from None
        except ServiceNotPermitted:
            raise _Failed(error(ErrorCode.PERMISSION_DENIED)) from None
        except TimeoutError:
            raise _Failed(error(ErrorCode.INTERNAL)) from None
        message = reply["message"]
        if message["type"] == "error":
            raise _Failed(error_of(message["code"], message["message"]))
        return message["data"]

    async def pages(self, command: str, entries: str, page_size: int = PAGE, **params: Any) -> list[Any]:
        """Return the entries of all pages. Raises _Failed: also if there are too many."""
        found: list[Any] = []
        after = None
        while True:
            page = await self.call(CONTROL, command, after=after, limit=page_size, **params)
            found += page[entries]
            after = page["next"]
            if after is None:
                return found
            if len(found) >= LIST_MAX:
                raise _Failed(error(ErrorCode.LIMIT_EXCEEDED))


class CentrifugeAPI:
    """Answers requests, by the services of a BackendHandler."""

    def __init__(self, backend: BackendHandler) -> None:
        self._backend = backend

    def routes(self, path: str = "/api") -> list[web.RouteDef]:
        """Make the routes for an aiohttp application."""
        return [web.post(f"{path}/{{method}}", self._handle)]

    async def _handle(self, request: web.Request) -> web.Response:
        async def answer(body: bytes, key_name: str) -> web.Response:
            return await self._answer(request, body, Sender(key_name, request.remote))

        return await self._backend.admit(request, answer, key=key_in(request))

    async def _answer(self, request: web.Request, body: bytes, sender: Sender) -> web.Response:
        method = _METHODS.get(request.match_info["method"])
        if method is None:
            raise web.HTTPNotFound
        self._backend.count(sender)
        try:
            params = decode_json(body) if body.strip() else {}
        except InvalidMessage:
            params = None
        if not isinstance(params, dict):
            raise web.HTTPBadRequest
        try:
            async with asyncio.timeout(TIMEOUT_S):
                reply = await _replied(method, _Caller(self._backend, sender), params)
        except TimeoutError:
            reply = {"error": error(ErrorCode.INTERNAL)}
        status = 200
        if "error" in reply and request.headers.get("X-Centrifugo-Error-Mode") == "transport":
            status = _STATUSES.get(reply["error"]["code"], 500)
        if method is _batch and "result" in reply:
            reply = reply["result"]
        data = encode_json(reply, max_values=100 * LIST_MAX)
        return web.Response(status=status, body=data, content_type="application/json")


def key_in(request: web.Request) -> str:
    """Return the key that a sender presents; "" = none."""
    scheme, _, written = request.headers.get("Authorization", "").partition(" ")
    key = request.headers.get("X-API-Key") or (written if scheme.lower() == "apikey" else "")
    return key or request.query.get("api_key", "")


_Method = Callable[[_Caller, dict[str, Any]], Awaitable[dict[str, Any]]]


async def _replied(method: _Method, caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    """Run a method; returns its result, or its error."""
    try:
        return {"result": await method(caller, params)}
    except _Failed as failed:
        return {"error": dict(failed.error)}
    except Exception:  # the top of a method: the results of the others in a batch must not be lost
        _log.exception("method failed")
        return {"error": error(ErrorCode.INTERNAL)}


# -- methods: their parameters are those of Centrifugo ----------------------------------------------------------------


async def _publish(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    return await _publish_to(caller, _channel(params), params)


async def _publish_to(caller: _Caller, channel: str, params: dict[str, Any]) -> dict[str, Any]:
    key = params.get("idempotency_key") or None
    asked = {"message": _data(params), "key": key, "withPosition": True, "tags": params.get("tags")}
    data = await caller.call(PUBLISHING, "publish", channel=channel, **asked)
    return {} if data["position"] is None else replies.position(data["position"])


async def _broadcast(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    channels = params.get("channels")
    if not isinstance(channels, list) or not all(isinstance(each, str) and each for each in channels):
        raise _bad()
    if len(channels) > COMMANDS_MAX:
        raise _Failed(error(ErrorCode.LIMIT_EXCEEDED))

    def publish_to(channel: str) -> _Method:
        return lambda caller, params: _publish_to(caller, channel, params)

    return {"responses": await asyncio.gather(*(_replied(publish_to(each), caller, params) for each in channels))}


async def _subscribe(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    since, expire_at = params.get("recover_since"), params.get("expire_at")
    recover: bool | str = True
    if isinstance(since, dict):
        recover = f"{since.get('epoch', '')}:{since.get('offset', 0)}"
    await caller.call(
        CONTROL,
        "subscribe",
        channel=_channel(params),
        recover=recover,
        expiresInS=_seconds_until(expire_at),
        **_whom(params),
    )
    return {}


async def _unsubscribe(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    await caller.call(CONTROL, "unsubscribe", channel=_channel(params), **_whom(params))
    return {}


async def _disconnect(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    told = params.get("disconnect")
    asked = told if isinstance(told, dict) else {}
    code = asked.get("code", 3503)
    if not isinstance(code, int):
        raise _bad()
    comes_back = code < 3500 or 4000 <= code < 4500
    whom, kept = _whom(params), params.get("whitelist")
    reason = asked.get("reason") or None
    if not isinstance(kept, list) or not kept:
        await caller.call(CONTROL, "disconnect", reconnect=comes_back, reason=reason, **whom)
        return {}
    for each in await caller.pages("connections", "connections", identity=whom.get("identity")):
        if each["connection"] not in kept and whom.get("connection") in (None, each["connection"]):
            about = whom | {"connection": each["connection"]}
            await caller.call(CONTROL, "disconnect", reconnect=comes_back, reason=reason, **about)
    return {}


async def _refresh(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    if params.get("expired"):
        await caller.call(CONTROL, "disconnect", reconnect=True, reason="expired", **_whom(params))
    else:
        await caller.call(CONTROL, "refresh", expiresInS=_seconds_until(params.get("expire_at")), **_whom(params))
    return {}


async def _presence(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    found = await _members(caller, params)
    return replies.presence({"connections": found})


async def _presence_stats(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    found = await _members(caller, params)
    users = {each["identity"] or each["connection"] for each in found}
    return {"num_clients": len(found), "num_users": len(users)}


async def _members(caller: _Caller, params: dict[str, Any]) -> list[Any]:
    return await caller.pages("presence", "connections", MEMBERS_PAGE, channel=_channel(params), connections=True)


async def _history(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    limit, since = params.get("limit") or 0, params.get("since")
    if isinstance(limit, bool) or not isinstance(limit, int):
        raise _bad()
    place = f"{since.get('epoch', '')}:{since.get('offset', 0)}" if isinstance(since, dict) else None
    data = await caller.call(
        CONTROL,
        "history",
        channel=_channel(params),
        limit=HISTORY_MAX if limit < 0 else min(limit, HISTORY_MAX),
        since=place,
        order="newest" if params.get("reverse") else "oldest",
    )
    if data["position"] is None:
        raise _Failed(error(ErrorCode.NOT_AVAILABLE))
    kept = [each for each in data["messages"] if not each.get("tombstone")]
    found = [
        {"data": each["message"], "offset": each["offset"]} | {name: each[name] for name in ATTRIBUTES if name in each}
        for each in kept
    ]
    return {"publications": found, **replies.position(data["position"])}


async def _history_remove(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    await caller.call(CONTROL, "historyRemove", channel=_channel(params))
    return {}


async def _channels(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    found = await caller.pages("channels", "channels", pattern=params.get("pattern") or "*")
    return {"channels": {each["channel"]: {"num_clients": each["subscribers"]} for each in found}}


async def _info(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    found = await caller.pages("nodes", "nodes")
    return {"nodes": [_node(each) for each in found]}


async def _batch(caller: _Caller, params: dict[str, Any]) -> dict[str, Any]:
    commands = params.get("commands")
    if not isinstance(commands, list) or len(commands) > COMMANDS_MAX:
        raise _bad()

    async def run(command: Any) -> dict[str, Any]:
        if not isinstance(command, dict) or len(command) != 1:
            return {"error": error(ErrorCode.BAD_REQUEST)}
        ((name, asked),) = command.items()
        method = _METHODS.get(name)
        if method is None or method is _batch:
            return {"error": error(ErrorCode.METHOD_NOT_FOUND)}
        reply = await _replied(method, caller, asked if isinstance(asked, dict) else {})
        return reply if "error" in reply else {name: reply["result"]}

    if params.get("parallel"):
        turns = asyncio.Semaphore(PARALLEL)

        async def in_turn(command: Any) -> dict[str, Any]:
            async with turns:
                return await run(command)

        return {"replies": await asyncio.gather(*map(in_turn, commands))}
    return {"replies": [await run(each) for each in commands]}


_METHODS: Final[Mapping[str, _Method]] = {
    "batch": _batch,
    "broadcast": _broadcast,
    "channels": _channels,
    "disconnect": _disconnect,
    "history": _history,
    "history_remove": _history_remove,
    "info": _info,
    "presence": _presence,
    "presence_stats": _presence_stats,
    "publish": _publish,
    "refresh": _refresh,
    "subscribe": _subscribe,
    "unsubscribe": _unsubscribe,
}


# -- parameters -------------------------------------------------------------------------------------------------------


def _bad() -> _Failed:
    return _Failed(error(ErrorCode.BAD_REQUEST))


def _channel(params: dict[str, Any]) -> str:
    channel = params.get("channel")
    if not isinstance(channel, str) or not channel:
        raise _bad()
    return channel


def _data(params: dict[str, Any]) -> Any:
    if params.get("b64data"):
        try:
            return decode_json(base64.b64decode(params["b64data"], validate=True))
        except (binascii.Error, TypeError, ValueError, InvalidMessage):
            raise _bad() from None
    if "data" not in params:
        raise _bad()
    return params["data"]


def _whom(params: dict[str, Any]) -> dict[str, Any]:
    """Read which connections a method is about; a session is a connection's id. Raises _Failed: none is named."""
    user, client = params.get("user") or None, params.get("client") or params.get("session") or None
    if user is None and client is None:
        raise _bad()
    return {"identity": user, "connection": client}


def _seconds_until(expire_at: Any) -> float | None:
    if not expire_at:
        return None
    if isinstance(expire_at, bool) or not isinstance(expire_at, (int, float)):
        raise _bad()
    return max(0.001, expire_at - time.time())


def _node(node: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "uid": node["node"],
        "name": node["node"],
        "version": node.get("version", ""),
        "num_clients": node["connections"],
        "num_subs": node["subscriptions"],
        "num_channels": node["channels"],
    }
