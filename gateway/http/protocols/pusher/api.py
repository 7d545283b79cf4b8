"""Pusher's HTTP API, `/apps/ID/...`, for the libraries of backends. On the public port: each request is signed.

Rules:
- The signature is checked before the body is read; its query has the body's MD5. A request is valid for ten minutes.
- A wrong signature is answered later and later, as a wrong key of the backend is.
- Events are published to the pub/sub service of the app, as the backend publishes: rules of clients do not apply.
- Counts are the sum over the nodes that answer within a second.
"""

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, Protocol, runtime_checkable

import structlog
from aiohttp import web

from snorky.gateway.config.pusher import PusherApp
from snorky.gateway.errors import BrokerUnavailable, CloseCode, InvalidMessage, SnorkyError
from snorky.gateway.http.backend.key_brake import Brake
from snorky.gateway.http.protocols.pusher.events import NAME_MAX
from snorky.gateway.http.protocols.pusher.names import connection_id_of, is_channel, kind_of
from snorky.gateway.http.protocols.pusher.signatures import request_text, sign
from snorky.gateway.http.serving.bodies import Bodies
from snorky.gateway.http.websocket.handler import WebSocketHandler
from snorky.gateway.http.websocket.handshake import HandshakeRefused
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import decode_json, encode_json
from snorky.gateway.protocol.identities import identity_name
from snorky.gateway.protocol.publication import Selector
from snorky.gateway.sdk.handles import Rosters

__all__ = ["Publishes", "PusherAPI"]

CHANNELS_MAX: Final = 100  # of one event
BATCH_MAX: Final = 10  # events of one request
VALID_S: Final = 600  # before and after its time, for a request
LIST_MAX: Final = 50_000  # channels in one reply
PAGE: Final = 200
PARALLEL: Final = 8  # counts that are asked for at the same time
TIMEOUT_S: Final = 20.0
_NO_USERS: Final = "user_count is only for presence channels"

_log = structlog.get_logger("snorky.pusher")
_audit = structlog.get_logger("snorky.audit")


@runtime_checkable
class Publishes(Protocol):
    """The pub/sub service of an app, as the API needs it."""

    def published(
        self, channel: Any, message: Any, once: str | None = None, *, to: Selector | None = None
    ) -> "asyncio.Future[Any]":
        """Publish a message. to: send it only to these subscribers."""


class _Refused(Exception):
    """A request is refused with an HTTP status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


_Answer = Callable[["_Call"], Awaitable[dict[str, Any]]]


class PusherAPI:
    """Answers requests for the apps of a WebSocketHandler, by the services of its node."""

    def __init__(self, websockets: WebSocketHandler) -> None:
        self._websockets = websockets
        self._apps = dict(websockets.public.pusher_apps or {})

    def routes(self) -> list[web.RouteDef]:
        """Make the routes for an aiohttp application."""
        app, users = "/apps/{app}", "/users/{user}/terminate_connections"
        return [
            web.post(f"{app}/events", self._answering(_post_event)),
            web.post(f"{app}/batch_events", self._answering(_post_batch)),
            web.get(f"{app}/channels", self._answering(_get_channels), allow_head=False),
            web.get(f"{app}/channels/{{channel}}", self._answering(_get_channel), allow_head=False),
            web.get(f"{app}/channels/{{channel}}/users", self._answering(_get_users), allow_head=False),
            web.post(app + users, self._answering(_terminate)),
            web.post(users, self._answering(_terminate)),  # a library names no app here
        ]

    @cached_property
    def _brake(self) -> Brake:
        return Brake()

    @cached_property
    def _bodies(self) -> Bodies:
        endpoint = self._websockets.endpoint
        return Bodies(endpoint.node.metrics, lambda _address: None)  # it is a backend, which has signed the request

    def _answering(self, answer: _Answer) -> Callable[[web.Request], Awaitable[web.Response]]:
        async def respond(request: web.Request) -> web.Response:
            try:
                app = await self._admitted(request)
                body = await self._body(request)
                async with asyncio.timeout(TIMEOUT_S):
                    found = await answer(_Call(self._websockets.endpoint.node, app, request, body))
            except _Refused as refused:
                return _refusal(refused.status, str(refused))
            except InvalidMessage as error:
                return _refusal(400, str(error))
            except (BrokerUnavailable, TimeoutError):
                return _refusal(503, "Temporarily unavailable: try again")
            except SnorkyError as error:
                return _refusal(503 if error.code == "rate_limited" else 400, str(error))
            return web.Response(body=encode_json(found, max_values=10 * LIST_MAX), content_type="application/json")

        return respond

    async def _admitted(self, request: web.Request) -> PusherApp:
        """Check the app and the signature. Raises _Refused."""
        query = request.query
        if "app" in request.match_info:
            app = self._apps.get(request.match_info["app"])
        else:
            app = next((each for each in self._apps.values() if each.key == query.get("auth_key")), None)
        if app is None:
            await self._delay(request)
            raise _Refused(404, "There is no such app")
        signed = request_text(request.method, request.path, query.items())
        given = query.get("auth_signature", "").encode("utf-8", "surrogatepass")
        is_ours = query.get("auth_key") == app.key and query.get("auth_version", "1.0") == "1.0"
        if not (hmac.compare_digest(sign(app, signed).encode(), given) and is_ours):
            await self._delay(request)
            raise _Refused(401, "Invalid signature: check key and secret, and that no proxy changes the URL")
        timestamp = query.get("auth_timestamp", "")
        if not timestamp.isdecimal() or len(timestamp) > 15 or abs(int(timestamp) - time.time()) > VALID_S:
            raise _Refused(401, f"auth_timestamp is not within {VALID_S} s of this node's clock")
        return app

    async def _delay(self, request: web.Request) -> None:
        """Note a wrong signature; each further one of an address is answered later. Raises _Refused: too many."""
        endpoint = self._websockets.endpoint
        address = endpoint.admission.client_ip(request)
        endpoint.node.auth.refusals.note("pusher", "signature", address=address)
        wait_s = self._brake.wait_s(address)
        if wait_s is None:
            endpoint.node.metrics.limit_hits.labels("wrong_keys").inc()
            raise _Refused(429, "Too many wrong signatures from this address")
        await asyncio.sleep(wait_s)

    async def _body(self, request: web.Request) -> bytes:
        """Read the body of a signed request. Raises _Refused."""
        try:
            body = await self._bodies.read(request, "")
        except web.HTTPRequestEntityTooLarge:
            raise _Refused(413, "The request is too large") from None
        except (web.HTTPRequestTimeout, web.RequestPayloadError, HandshakeRefused):
            raise _Refused(400, "The body did not arrive") from None
        stated = request.query.get("body_md5")
        found = hashlib.md5(body, usedforsecurity=False).hexdigest()  # the protocol demands it; the HMAC covers it
        if request.method == "POST" and stated is None:
            raise _Refused(401, "body_md5 is missing")
        if request.method == "POST" and stated != found:
            raise _Refused(401, "body_md5 is not that of the body")
        return body


class _Call:
    """One request. Its methods raise _Refused."""

    def __init__(self, node: Node, app: PusherApp, request: web.Request, body: bytes) -> None:
        self.node = node
        self.app = app
        self.request = request
        self._body = body

    @property
    def fields(self) -> dict[str, Any]:
        """The object in the body."""
        value = decode_json(self._body)
        if not isinstance(value, dict):
            raise _Refused(400, "The body must be a JSON object")
        return value

    @property
    def info(self) -> frozenset[str]:
        """The facts that the query asks for."""
        return _words(self.request.query.get("info"))

    @property
    def channel(self) -> str:
        """The channel in the path."""
        return _channel(self.request.match_info["channel"])

    @property
    def service(self) -> Publishes:
        """The pub/sub service of the app."""
        service = self.node.find_service(self.app.service)
        if not isinstance(service, Publishes):
            raise _Refused(503, f"This node has no pub/sub service {self.app.service}")
        return service

    async def publish(self, event: Mapping[str, Any], channels: Sequence[Any]) -> None:
        """Publish an event to channels; returns when Redis has it."""
        name, data, sender = event.get("name"), event.get("data"), event.get("socket_id")
        if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX:
            raise _Refused(400, f"name must be a text of 1 to {NAME_MAX} characters")
        if not isinstance(data, str):
            raise _Refused(400, "data must be a text")
        if len(data.encode("utf-8", "surrogatepass")) > self.app.data_max_bytes:
            raise _Refused(413, f"data has more than {self.app.data_max_bytes} bytes")
        excluded = None if sender is None else connection_id_of(sender)
        if sender is not None and excluded is None:
            raise _Refused(400, "socket_id must be two numbers with a dot between")
        to = None if excluded is None else Selector(not_connection=excluded)
        names = [_channel(each) for each in channels]
        service, message = self.service, {"event": name, "data": data}
        published = [service.published(each, message, to=to) for each in names]
        for outcome in await asyncio.gather(*published, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    async def about(self, channel: str, wanted: frozenset[str]) -> dict[str, Any]:
        """Count what is asked for about a channel."""
        found: dict[str, Any] = {}
        if "subscription_count" in wanted:
            found["subscription_count"] = await self.subscribers(channel)
        if "user_count" in wanted and kind_of(channel).is_presence:
            found["user_count"] = len(await self.users(channel))
        return found

    async def subscribers(self, channel: str) -> int:
        """Count the subscribers of a channel."""
        page = await self.node.control.look("channels", service=self.app.service, pattern=channel, limit=1)
        return sum(each["subscribers"] for each in page.entries)

    async def users(self, channel: str) -> list[str]:
        """List the users on a presence channel."""
        census = await Rosters(self.node, self.app.service).census(channel)
        return sorted({member.identity for member in census.members})


async def _post_event(call: _Call) -> dict[str, Any]:
    fields = call.fields
    channels = fields.get("channels", [fields.get("channel")])
    if not isinstance(channels, list) or not 0 < len(channels) <= CHANNELS_MAX:
        raise _Refused(400, f"channels must be a list of 1 to {CHANNELS_MAX} names")
    await call.publish(fields, channels)
    wanted = _words(fields.get("info"))
    if not wanted:
        return {}
    return {"channels": await _about_each(call, channels, wanted)}


async def _post_batch(call: _Call) -> dict[str, Any]:
    batch = call.fields.get("batch")
    if not isinstance(batch, list) or not 0 < len(batch) <= BATCH_MAX or not all(isinstance(e, dict) for e in batch):
        raise _Refused(400, f"batch must be a list of 1 to {BATCH_MAX} events")
    for event in batch:
        await call.publish(event, [event.get("channel")])
    wanted = [_words(event.get("info")) for event in batch]
    if not any(wanted):
        return {}
    pairs = zip(batch, wanted, strict=True)
    return {"batch": [await call.about(_channel(event["channel"]), words) for event, words in pairs]}


async def _get_channels(call: _Call) -> dict[str, Any]:
    prefix, wanted = call.request.query.get("filter_by_prefix", ""), call.info
    if prefix and not is_channel(prefix):
        raise _Refused(400, "filter_by_prefix is not the beginning of a channel's name")
    if "user_count" in wanted and not prefix.startswith("presence-"):
        raise _Refused(400, _NO_USERS)
    counts: dict[str, int] = {}
    after = ""
    while True:
        page = await call.node.control.look(
            "channels", service=call.app.service, pattern=f"{prefix}*", after=after, limit=PAGE
        )
        counts |= {each["channel"]: each["subscribers"] for each in page.entries if is_channel(each["channel"])}
        if page.last is None:
            break
        if len(counts) >= LIST_MAX:
            raise _Refused(400, f"There are more than {LIST_MAX} channels: ask for a longer prefix")
        after = page.last
    described = await _about_each(call, list(counts), wanted - {"subscription_count"})
    if "subscription_count" in wanted:
        for name, about in described.items():
            about["subscription_count"] = counts[name]
    return {"channels": described}


async def _get_channel(call: _Call) -> dict[str, Any]:
    channel, wanted = call.channel, call.info
    if "user_count" in wanted and not kind_of(channel).is_presence:
        raise _Refused(400, _NO_USERS)
    count = await call.subscribers(channel)
    found = {"occupied": count > 0, **await call.about(channel, wanted - {"subscription_count"})}
    return found | {"subscription_count": count} if "subscription_count" in wanted else found


async def _get_users(call: _Call) -> dict[str, Any]:
    if not kind_of(call.channel).is_presence:
        raise _Refused(400, "Only presence channels have users")
    return {"users": [{"id": each} for each in await call.users(call.channel)]}


async def _terminate(call: _Call) -> dict[str, Any]:
    try:
        identity = identity_name(call.request.match_info["user"])
    except ValueError as error:
        raise _Refused(400, str(error)) from None
    reached = await call.node.control.give(
        "disconnect", identity=identity, code=int(CloseCode.DISCONNECTED), reason="Terminated by the backend"
    )
    by, missing = f"pusher app {call.app.id}", " ".join(reached.missing)
    _audit.info("control", by=by, command="disconnect", identity=identity, connections=reached.connections)
    if missing:
        _log.warning("nodes have not answered; they obey when they are back", missing=missing)
    return {}


async def _about_each(call: _Call, channels: Sequence[str], wanted: frozenset[str]) -> dict[str, dict[str, Any]]:
    turns = asyncio.Semaphore(PARALLEL)

    async def about(channel: str) -> dict[str, Any]:
        async with turns:
            return await call.about(channel, wanted)

    if not wanted:
        return {channel: {} for channel in channels}
    return dict(zip(channels, await asyncio.gather(*map(about, channels)), strict=True))


def _words(written: object) -> frozenset[str]:
    found = written.split(",") if isinstance(written, str) else ()
    return frozenset(each.strip() for each in found if each.strip())


def _channel(name: object) -> str:
    if not is_channel(name):
        raise _Refused(400, "A channel's name has 1 to 200 of A-Z a-z 0-9 _ - = @ , . ;")
    return str(name)


def _refusal(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=f"{text}\n")
    if status in (429, 503):
        response.headers["Retry-After"] = "1"
    if status in (401, 404, 413, 429):
        response.force_close()  # the body may not be read
    return response
