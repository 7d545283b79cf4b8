"""Pieces: publications as the bytes that a channel's subscribers get. The hot path.

Rules:
- Per channel, shape and dialect a publication is rendered and framed once, never per client. What comes together is
  one piece of bytes that all who get it share.
- Two shapes: plain, and with positions, for who asked to recover. What has no position is plain to these too, and
  tombstones are for these only.
"""

from collections.abc import Callable, Sequence
from time import monotonic

from gateway.codec import Encoding, Json, encode, encode_msgpack
from gateway.connection import Connection
from gateway.errors import CloseCode
from gateway.hub import Channel, Groups, Hub, News
from gateway.metrics import Metrics
from gateway.passes import Pass, Passes
from gateway.publication import Publication, Selector

__all__ = ["Pieces"]


class Pieces:
    """Makes pieces for the channels of a hub, and lines up the passes that write them."""

    def __init__(self, hub: Hub, passes: Passes, metrics: Metrics) -> None:
        self._hub = hub
        self._passes = passes
        self._metrics = metrics

    def plain(
        self,
        channel: Channel,
        payloads: Sequence[bytes],
        values: Sequence[Json],
        selector: Selector | None = None,
        news: News | None = None,
    ) -> None:
        """Line up payloads, JSON, for all or some who get the plain shape. values: the same, decoded."""
        if not payloads:
            return

        def render(encoding: Encoding) -> list[bytes]:
            if selector is not None and selector.is_whole:
                return [_whole(channel, value, encoding) for value in values]
            encoded = payloads if encoding is Encoding.JSON else [encode_msgpack(value) for value in values]
            render_one = channel.template.render
            return [render_one(each, encoding) for each in encoded]

        self._line_up(channel, channel.groups, render, selector, news)

    def positioned(
        self,
        channel: Channel,
        checked: Sequence[tuple[Publication, Json]],
        selector: Selector | None = None,
        news: News | None = None,
    ) -> None:
        """Line up publications for all or some who asked to recover. checked: with their payloads, decoded."""
        if not (channel.positioned and checked):
            return

        def render(encoding: Encoding) -> list[bytes]:
            if selector is not None and selector.is_whole:
                return [_whole(channel, value, encoding) for _, value in checked]
            return [_render(channel, publication, value, encoding) for publication, value in checked]

        self._line_up(channel, channel.positioned, render, selector, news)

    def notice(self, channel: Channel, message: Json) -> None:
        """Line up a whole envelope for all who asked to recover."""
        self._line_up(channel, channel.positioned, lambda encoding: [encode(message, encoding)])

    def _line_up(
        self,
        channel: Channel,
        groups: Groups,
        render: Callable[[Encoding], list[bytes]],
        selector: Selector | None = None,
        news: News | None = None,
    ) -> None:
        """Line up a pass per dialect. render: is asked for the messages once per encoding."""
        chooses = None
        if selector is not None or news is not None:
            chooses = channel.audience(selector, news, monotonic())
        by_encoding: dict[Encoding, list[bytes]] = {}
        for dialect, group in groups.items():
            connections = tuple(group if chooses is None else filter(chooses, group))
            if not connections:
                continue
            messages = by_encoding.get(dialect.encoding)
            if messages is None:
                messages = by_encoding[dialect.encoding] = render(dialect.encoding)
            data = b"".join(map(dialect.frame, messages))
            self._metrics.deliveries.inc(len(messages) * len(connections))
            self._metrics.sent_bytes.inc(len(data) * len(connections))
            if channel.held is not None:
                connections = _hold(channel.held, connections, data, 0 if news is None else news.version)
            self._passes.line_up(Pass(groups, dialect, connections, data, self._hub.joined))


def _whole(channel: Channel, value: Json, encoding: Encoding) -> bytes:
    return encode({"service": channel.key.partition(":")[0], "message": value}, encoding)


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
    """Keep bytes for those that are held; returns the others."""
    for connection in held.keys() & set(connections):
        waiting = held[connection]
        waiting.append((version, data))
        if sum(len(each) for _, each in waiting) > connection.outbox_max_bytes:
            waiting.clear()
            connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
    return tuple(each for each in connections if each not in held)
