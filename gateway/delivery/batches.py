"""BatchEncoder: encodes publications as the bytes that a channel's subscribers receive. The hot path.

Rules:
- A publication is encoded and framed once per channel, form and dialect, never per client. Publications of one read
  become one piece of bytes, which all its receivers share.
- There are two forms: plain, and with positions for clients that asked to recover. A publication without a position
  is plain in both; only the second form contains tombstones.
- Foreign protocols encode publications by a `Rendering`, also once per channel and form. They get no tombstones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from time import monotonic
from types import MappingProxyType
from typing import Final

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.delivery_rules import DeliveryRules
from snorky.gateway.delivery.hub import Channel, Groups, Hub, RosterEvent
from snorky.gateway.delivery.write_queue import Batch, NewestMessages, WriteQueue
from snorky.gateway.errors import CloseCode
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import Encoding, Json, channel_of, encode_msgpack
from snorky.gateway.protocol.foreign import EncodePublication, Rendering
from snorky.gateway.protocol.publication import Position, Publication, Selector
from snorky.gateway.protocol.ws_frames import Dialect, dialect_for

__all__ = ["BatchEncoder"]

ENCODERS_MAX: Final = 1024  # at most 1.5 MB; making one takes 10 us in a process whose caches are cold
_NONE: Final[Mapping[int, bytes]] = MappingProxyType({})
_Described = tuple[bytes, Position | None, bytes]  # payload, position, attributes


class BatchEncoder:
    """Makes pieces for the channels of a hub, and queues the passes that write them."""

    def __init__(self, hub: Hub, write_queue: WriteQueue, metrics: Metrics, rules: DeliveryRules) -> None:
        self._hub = hub
        self._write_queue = write_queue
        self._metrics = metrics
        self._rules = rules

    def plain(
        self,
        channel: Channel,
        payloads: Sequence[bytes],
        values: Sequence[Json],
        selector: Selector | None = None,
        event: RosterEvent | None = None,
        *,
        attributes: Mapping[int, bytes] = _NONE,
    ) -> None:
        """Queue JSON payloads for all or some subscribers of the plain form. values: the decoded payloads.

        attributes: of those payloads that have any, by their places.
        """
        if not payloads:
            return

        def render(dialect: Dialect) -> list[bytes]:
            encoding = dialect.encoding
            if event is not None and dialect.follows_connections:
                return _changed(channel, event, dialect)
            if selector is not None and selector.is_whole:
                return [each for value in values for each in _whole(channel, value, dialect)]
            if dialect.rendering is not None:
                known: Iterable[_Described] = zip(payloads, repeat(None), repeat(b""), strict=False)
                if attributes:
                    known = [(each, None, attributes.get(place, b"")) for place, each in enumerate(payloads)]
                return _foreign(channel, known, dialect.rendering)
            encoded = payloads if encoding is Encoding.JSON else [encode_msgpack(value) for value in values]
            render_one = channel.template.render
            return [render_one(each, encoding) for each in encoded]

        subjects: Sequence[bytes | None] = ()
        if self._rules and selector is None and event is None:
            subject_of = self._rules.subject_of(channel.key)
            subjects = () if subject_of is None else [subject_of(value) for value in values]
        self._line_up(channel, channel.groups, render, selector, event, subjects)

    def positioned(
        self,
        channel: Channel,
        checked: Sequence[tuple[Publication, Json]],
        selector: Selector | None = None,
        event: RosterEvent | None = None,
    ) -> None:
        """Queue publications for all or some subscribers with positions. checked: with their decoded payloads."""
        if not (channel.positioned and checked):
            return

        def render(dialect: Dialect) -> list[bytes]:
            if event is not None and dialect.follows_connections:
                return _changed(channel, event, dialect)
            if selector is not None and selector.is_whole:
                return [each for _, value in checked for each in _whole(channel, value, dialect)]
            if dialect.rendering is not None:
                known = [(each.payload, each.position, each.attributes) for each, _ in checked if not each.is_tombstone]
                return _foreign(channel, known, dialect.rendering)
            return [_render(channel, publication, value, dialect.encoding) for publication, value in checked]

        self._line_up(channel, channel.positioned, render, selector, event)

    def notice(self, channel: Channel, message: dict[str, Json]) -> None:
        """Queue a gap notice for all subscribers with positions."""
        self._line_up(channel, channel.positioned, lambda dialect: _encoded(message, dialect))

    def _line_up(
        self,
        channel: Channel,
        groups: Groups,
        render: Callable[[Dialect], list[bytes]],
        selector: Selector | None = None,
        event: RosterEvent | None = None,
        subjects: Sequence[bytes | None] = (),
    ) -> None:
        """Queue a pass per dialect. render: called once per encoding and foreign rendering; returns the messages.

        subjects: of the messages, if the channel has `conflate`.
        """
        chooses = every = None
        if selector is not None or event is not None:
            chooses = channel.audience(selector, event, monotonic())
        if event is not None and event.change is not None:  # for renderings that follow connections
            others = Selector(not_connection=event.change.connection_id)  # a client's own join comes with its reply
            every = channel.audience(others, event, monotonic())
        service = channel.key.partition(":")[0]
        rendered: dict[Encoding | Rendering, list[bytes]] = {}
        deliveries = sent_bytes = 0
        for dialect, group in groups.items():
            wanted = every if event is not None and dialect.follows_connections else chooses
            connections = tuple(group if wanted is None else filter(wanted, group))
            if not connections or not dialect.serves(service):
                continue
            form = dialect.rendering or dialect.encoding
            messages = rendered.get(form)
            if messages is None:
                messages = rendered[form] = render(dialect)
            if not messages:
                continue
            frame = dialect.frame
            if dialect.has_deflate and not self._rules.compresses(channel.key):
                frame = dialect_for(dialect.encoding).frame
            frames = [*map(frame, messages)]
            data = b"".join(frames)
            deliveries += len(messages) * len(connections)
            sent_bytes += len(data) * len(connections)
            if channel.held is not None:
                connections = _hold(channel.held, connections, data, 0 if event is None else event.version)
            batch = Batch(groups, dialect, connections, data, self._hub.joined)
            if len(subjects) == len(frames):
                batch.newest = NewestMessages.of(subjects, frames)
            self._write_queue.line_up(batch)
        if deliveries:
            self._metrics.deliveries.inc(deliveries)
            self._metrics.sent_bytes.inc(sent_bytes)


def _changed(channel: Channel, event: RosterEvent, dialect: Dialect) -> list[bytes]:
    """Encode a change of the roster for a rendering that follows connections."""
    if event.change is None or dialect.rendering is None:
        return []
    encoded = dialect.rendering.change(channel_of(channel.key.partition(":")[2]), event.change)
    return [] if encoded is None else [encoded]


def _whole(channel: Channel, value: Json, dialect: Dialect) -> list[bytes]:
    return _encoded({"service": channel.key.partition(":")[0], "message": value}, dialect)


def _encoded(envelope: dict[str, Json], dialect: Dialect) -> list[bytes]:
    notice = dialect.encode_notice(envelope)
    return [] if notice is None else [notice]


def _foreign(channel: Channel, publications: Iterable[_Described], rendering: Rendering) -> list[bytes]:
    """Encode publications for a foreign protocol."""
    encode = _encoder(rendering, channel.key)
    found = [encode(payload, position, attributes) for payload, position, attributes in publications]
    return [each for each in found if each is not None]


@lru_cache(maxsize=ENCODERS_MAX)
def _encoder(rendering: Rendering, key: str) -> EncodePublication:
    return rendering.encoder(channel_of(key.partition(":")[2]))


def _render(channel: Channel, publication: Publication, value: Json, encoding: Encoding) -> bytes:
    payload = publication.payload if encoding is Encoding.JSON else encode_msgpack(value)
    position = publication.position
    if position is None:
        return channel.template.render(payload, encoding)
    return channel.template.render_at(
        payload, encoding, offset=position.offset, position=str(position), is_tombstone=publication.is_tombstone
    )


def _hold(
    held: dict[Connection, list[tuple[int, bytes]]], connections: tuple[Connection, ...], data: bytes, version: int
) -> tuple[Connection, ...]:
    """Buffer bytes for those connections that are held; returns the others."""
    for connection in held.keys() & set(connections):
        waiting = held[connection]
        waiting.append((version, data))
        if sum(len(each) for _, each in waiting) > connection.outbox_max_bytes:
            waiting.clear()
            connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
    return tuple(each for each in connections if each not in held)
