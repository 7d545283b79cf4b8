"""The methods of Pusher's HTTP API: events, channels, users. Each gets a `Call`, and returns the object of its answer.

Rules:
- All events of a request are checked before the first one is published.
- Events are published to the pub/sub service of the app, as the backend publishes: rules of clients do not apply.
- If some events of a request are not published in time, the answer is 503: others may have been.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

import structlog

from snorky.gateway.errors import BrokerUnavailable, CloseCode, InvalidMessage, LimitExceeded
from snorky.gateway.http.protocols.pusher.events import NAME_MAX, RESERVED, text_of
from snorky.gateway.http.protocols.pusher.names import connection_id_of, is_channel, kind_of
from snorky.gateway.http.protocols.pusher.signed_requests import RequestRefused, SignedRequest
from snorky.gateway.http.protocols.pusher.surveys import LIST_MAX, Surveys, TooManyChannels
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import channel_key, channel_name, decode_json
from snorky.gateway.protocol.identities import identity_name
from snorky.gateway.protocol.publication import Selector
from snorky.gateway.sdk.handles import Rosters

__all__ = [
    "Call",
    "Method",
    "Publishes",
    "get_channel",
    "get_channels",
    "get_users",
    "post_batch",
    "post_event",
    "terminate",
]

CHANNELS_MAX: Final = 100  # of one event
BATCH_MAX: Final = 10  # events of one request
PUBLISHED_WITHIN_S: Final = 4.5  # libraries wait for 5 s
_SPECIAL: Final = frozenset("*{}")  # in patterns
PORTION: Final = 200  # channels whose users are counted at the same time

_log = structlog.get_logger("snorky.pusher")
_audit = structlog.get_logger("snorky.audit")


@runtime_checkable
class Publishes(Protocol):
    """The pub/sub service of an app, as the API needs it."""

    def published(
        self, channel: Any, message: Any, once: str | None = None, *, to: Selector | None = None
    ) -> "asyncio.Future[Any]":
        """Publish a message. to: send it only to these subscribers."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request, and what answers it."""

    node: Node
    surveys: Surveys
    request: SignedRequest
    body: bytes

    @property
    def service(self) -> str:
        """The name of the pub/sub service of the app."""
        return self.request.app.service

    @property
    def fields(self) -> dict[str, Any]:
        """The object in the body. Raises RequestRefused, InvalidMessage."""
        value = decode_json(self.body)
        if not isinstance(value, dict):
            raise RequestRefused(400, "The body must be a JSON object")
        return value

    @property
    def info(self) -> frozenset[str]:
        """The facts that the query asks for."""
        return _words(self.request.query.get("info"))

    @property
    def channel(self) -> str:
        """The channel in the path. Raises RequestRefused."""
        return _channel(self.request.names["channel"])

    async def publish(self, events: Sequence["_Event"]) -> None:
        """Publish events; returns when Redis has all. Raises RequestRefused, TimeoutError, BrokerUnavailable."""
        service = self.node.find_service(self.service)
        if not isinstance(service, Publishes):
            raise RequestRefused(503, f"This node has no pub/sub service {self.service}")
        published: list[asyncio.Future[Any]] = []
        async with asyncio.timeout(PUBLISHED_WITHIN_S):
            try:
                for event in events:
                    for channel in event.channels:
                        published.append(service.published(channel, event.message, to=event.to))
            finally:
                outcomes = await asyncio.gather(*published, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def about(self, channels: Sequence[str], wanted: frozenset[str]) -> dict[str, dict[str, Any]]:
        """Count what is asked for about channels."""
        found: dict[str, dict[str, Any]] = {channel: {} for channel in channels}
        if "user_count" in wanted:
            for channel, count in (await self._users([each for each in found if kind_of(each).is_presence])).items():
                found[channel]["user_count"] = count
        if "subscription_count" in wanted:
            for channel, count in (await self.surveys.subscribers(self.service, list(found))).items():
                found[channel]["subscription_count"] = count
        return found

    async def _users(self, channels: Sequence[str]) -> dict[str, int]:
        rosters, counts = Rosters(self.node, self.service), list[int]()
        for at in range(0, len(channels), PORTION):
            counts += await rosters.count_identities(channels[at : at + PORTION])
        return dict(zip(channels, counts, strict=True))


@dataclass(frozen=True, slots=True)
class _Event:
    """An event that is published. to: None = to all subscribers. info: facts about its channels that are asked for."""

    channels: list[str]
    message: dict[str, str]
    to: Selector | None
    info: frozenset[str]


Method = Callable[[Call], Awaitable[dict[str, Any]]]


async def post_event(call: Call) -> dict[str, Any]:
    """Publish an event to one or more channels."""
    fields = call.fields
    channels = fields.get("channels", [fields.get("channel")])
    if not isinstance(channels, list) or not 0 < len(channels) <= CHANNELS_MAX:
        raise RequestRefused(400, f"channels must be a list of 1 to {CHANNELS_MAX} names")
    event = _event(call, fields, channels)
    until_s = asyncio.get_running_loop().time() + PUBLISHED_WITHIN_S
    await call.publish([event])
    return {"channels": await _info(call, event.channels, event.info, until_s)} if event.info else {}


async def post_batch(call: Call) -> dict[str, Any]:
    """Publish some events, each to one channel."""
    batch = call.fields.get("batch")
    if not isinstance(batch, list) or not 0 < len(batch) <= BATCH_MAX or not all(isinstance(e, dict) for e in batch):
        raise RequestRefused(400, f"batch must be a list of 1 to {BATCH_MAX} events")
    events = [_event(call, fields, [fields.get("channel")]) for fields in batch]
    until_s = asyncio.get_running_loop().time() + PUBLISHED_WITHIN_S
    await call.publish(events)
    if not any(event.info for event in events):
        return {}
    names = {event.channels[0]: None for event in events if event.info}
    found = await _info(call, list(names), frozenset().union(*(event.info for event in events)), until_s)
    return {"batch": [_selected(found.get(event.channels[0], {}), event.info) for event in events]}


async def _info(call: Call, channels: list[str], wanted: frozenset[str], until_s: float) -> dict[str, dict[str, Any]]:
    """Count; nothing if that fails: the events are published, and backends would publish them again after an error."""
    try:
        async with asyncio.timeout_at(until_s):
            return await call.about(channels, wanted)
    except (BrokerUnavailable, LimitExceeded, TimeoutError):
        return {channel: {} for channel in channels}


async def get_channels(call: Call) -> dict[str, Any]:
    """List the channels that have subscribers."""
    prefix, wanted = call.request.query.get("filter_by_prefix", ""), call.info
    if prefix and (not is_channel(prefix) or _SPECIAL.intersection(prefix)):
        raise RequestRefused(400, "filter_by_prefix is not the beginning of a channel's name")
    if "user_count" in wanted and not kind_of(prefix).is_presence:
        raise RequestRefused(400, "user_count is only for presence channels: add filter_by_prefix=presence-")
    try:
        listed = await call.surveys.listed(call.service, prefix)
    except TooManyChannels:
        raise RequestRefused(400, f"There are more than {LIST_MAX} channels: ask for a longer prefix") from None
    counts = {name: count for name, count in listed.items() if is_channel(name)}
    described = await call.about(list(counts), wanted - {"subscription_count"})
    if "subscription_count" in wanted:
        for name, about in described.items():
            about["subscription_count"] = counts[name]
    return {"channels": described}


async def get_channel(call: Call) -> dict[str, Any]:
    """Describe a channel."""
    channel, wanted = call.channel, call.info
    kind = kind_of(channel)
    if "user_count" in wanted and not kind.is_presence:
        raise RequestRefused(400, "user_count is only for presence channels")
    if "cache" in wanted and not kind.is_cache:
        raise RequestRefused(400, "cache is only for cache channels")
    about = (await call.about([channel], wanted | {"subscription_count"}))[channel]
    found: dict[str, Any] = {"occupied": about["subscription_count"] > 0, **_selected(about, wanted)}
    return found | {"cache": await _kept(call, channel)} if "cache" in wanted else found


async def get_users(call: Call) -> dict[str, Any]:
    """List the users on a presence channel."""
    channel = call.channel
    if not kind_of(channel).is_presence:
        raise RequestRefused(400, "Only presence channels have users")
    census = await Rosters(call.node, call.service).census(channel)
    return {"users": [{"id": each} for each in sorted({member.identity for member in census.members})]}


async def terminate(call: Call) -> dict[str, Any]:
    """Disconnect all clients of a user who has signed in."""
    try:
        identity = identity_name(call.request.names["user"])
    except ValueError as error:
        raise RequestRefused(400, str(error)) from None
    reached = await call.node.control.give(
        "disconnect", identity=identity, code=int(CloseCode.DISCONNECTED), reason="Terminated by the backend"
    )
    by, missing = f"pusher app {call.request.app.id}", " ".join(reached.missing)
    _audit.info("control", by=by, command="disconnect", identity=identity, connections=reached.connections)
    if missing:
        _log.warning("nodes have not answered; they obey when they are back", missing=missing)
    return {}


def _event(call: Call, fields: Mapping[str, Any], channels: Sequence[Any]) -> _Event:
    """Read an event. Raises RequestRefused."""
    name, data, sender = fields.get("name"), fields.get("data"), fields.get("socket_id")
    if not isinstance(name, str) or not 0 < len(name) <= NAME_MAX:
        raise RequestRefused(400, f"name must be a text of 1 to {NAME_MAX} characters")
    if name.startswith(RESERVED):  # its subscribers would get it under another name
        raise RequestRefused(400, "Names that begin with pusher: or pusher_internal: are for events of the server")
    if not isinstance(data, str):
        raise RequestRefused(400, "data must be a text")
    if len(data.encode("utf-8", "surrogatepass")) > call.request.app.data_max_bytes:
        raise RequestRefused(413, f"data has more than {call.request.app.data_max_bytes} bytes")
    excluded = None if sender is None else connection_id_of(sender)
    if sender is not None and excluded is None:
        raise RequestRefused(400, "socket_id must be two numbers with a dot between")
    to = None if excluded is None else Selector(not_connection=excluded)
    return _Event([_channel(each) for each in channels], {"event": name, "data": data}, to, _words(fields.get("info")))


async def _kept(call: Call, channel: str) -> dict[str, str] | None:
    """Return the event that a cache channel keeps; None = none."""
    history = call.node.channels.history_store
    publications, _ = await history.recent(channel_key(call.service, channel), 1)
    if not publications or publications[-1].is_tombstone:
        return None
    try:
        message = decode_json(publications[-1].payload)
    except InvalidMessage:  # of another publisher; subscribers do not receive it either
        return None
    if isinstance(message, dict) and isinstance(message.get("event"), str):
        return {"event": message["event"], "data": text_of(message.get("data"))}
    return {"event": "message", "data": text_of(message)}  # as its subscribers receive it


def _selected(found: Mapping[str, Any], wanted: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name in wanted}


def _words(written: object) -> frozenset[str]:
    found = written.split(",") if isinstance(written, str) else ()
    return frozenset(each.strip() for each in found if each.strip())


def _channel(name: Any) -> str:
    """Check the name of a channel. Raises RequestRefused; InvalidChannel: the id of a user has too many bytes in it."""
    if not is_channel(name):
        raise RequestRefused(400, "A channel's name has 1 to 200 of A-Z a-z 0-9 _ - = @ , . ;")
    return channel_name(name)  # the same text
