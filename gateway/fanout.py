"""Fan-out: what one read from the broker brought, to every local subscriber. The hot path.

Rules:
- Per channel and dialect a publication is checked, rendered and framed once; what a read brought for a
  channel is one piece of bytes, and one write per connection. CPU follows passes x clients, not messages.
- Passes run one after another, in the order the broker brought them: nothing overtakes.
- A pass over very many clients is cut into chunks, a loop tick each, so that the loop stays responsive
  (5,000 writes block it for 65 ms). While passes are under way the broker is not read: its bytes wait in the
  socket, and the next read brings more at once, which costs less per publication.
- What is addressed to some of the subscribers is a pass of its own, in its place among the others.
- No task, timer or queue per message.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol

import structlog

from gateway.codec import Encoding, Json, decode_json, encode_msgpack
from gateway.connection import Connection
from gateway.errors import CloseCode, InvalidMessage
from gateway.frames import Dialect
from gateway.hub import Channel, Hub
from gateway.metrics import Metrics
from gateway.publication import MARK, Publication, Selector, UnknownVersion, read_publication

__all__ = ["Fanout", "Listener", "Source"]

CHUNK: Final = 1000  # writes per loop tick: 15 ms on a machine where one takes 15 us
COMPLAIN_EVERY_S: Final = 1.0  # the metric counts them all; a flood of bad ones must not flood the log
Listener = Callable[[Sequence[Publication]], None]  # of this node itself: what one read brought, in order

_log = structlog.get_logger("snorky.fanout")


class Source(Protocol):
    """What can be asked to wait while passes are under way: the broker."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Read again."""


@dataclass(slots=True)
class _Pass:
    """One piece of bytes on its way to the connections of one channel and dialect."""

    channel: Channel
    dialect: Dialect
    connections: tuple[Connection, ...]
    data: bytes
    done: int = 0  # how many of the connections have been written to


class Fanout:
    """Delivers publications to the subscribers in a hub."""

    def __init__(self, hub: Hub, source: Source, metrics: Metrics, *, chunk: int = CHUNK) -> None:
        self._hub = hub
        self._source = source
        self._metrics = metrics
        self._chunk = chunk
        self._listeners: dict[str, Listener] = {}
        self._passes: deque[_Pass] = deque()
        self._next: asyncio.Handle | None = None  # there while passes are under way: then the source is paused
        self._started_s = 0.0
        self._probe: tuple[str, bytes, float] | None = None
        self._is_probe_here = False
        self._complained_s = -COMPLAIN_EVERY_S

    def expect(self, key: str, payload: bytes) -> None:
        """Time this publication of our own until it is written to its clients; one at a time is timed."""
        now_s = perf_counter()
        if self._probe is None or now_s - self._probe[2] > 10.0:  # it was lost, or its channel has nobody here
            self._probe = (key, payload, now_s)

    def listen(self, key: str, listener: Listener) -> None:
        """Hand what comes for a channel to this node's own listener too, before the connections."""
        self._listeners[key] = listener

    def unlisten(self, key: str, listener: Listener | None = None) -> bool:
        """Undo `listen`, of this listener only if one is given. False = it was not there."""
        if key not in self._listeners or listener not in (None, self._listeners[key]):
            return False
        del self._listeners[key]
        return True

    def is_listened(self, key: str) -> bool:
        """True if the node itself hears this channel."""
        return key in self._listeners

    def deliver(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Deliver what one read brought. Per channel key: payloads in order, as they came."""
        if not self._passes:
            self._started_s = perf_counter()
        received = 0
        for key, payloads in batch.items():
            received += len(payloads)
            channel = self._hub.get(key)
            if self._probe is not None and self._probe[0] == key and self._probe[1] in payloads:
                self._is_probe_here = channel is not None
            if key in self._listeners:
                self._tell(key, payloads, is_only=channel is None)
            elif channel is None:  # it lingers: its last subscriber left a moment ago
                self._metrics.drops.labels("no_subscriber").inc(len(payloads))
            if channel is not None:
                self._sort(channel, payloads)
        self._metrics.publications_received.inc(received)
        if self._next is None:
            self._run()

    def stop(self) -> None:
        """Forget what is under way."""
        self._passes.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None
            self._source.resume()

    def _tell(self, key: str, payloads: Sequence[bytes], *, is_only: bool) -> None:
        """Hand a read's sound publications to the node's own listener. is_only: nobody else sees what is not sound."""
        publications = []
        for data in payloads:
            try:
                publication = read_publication(data)
                decode_json(publication.payload)
            except InvalidMessage as error:
                if is_only:
                    self._drop(key, error)
            else:
                publications.append(publication)
        try:
            if publications:
                self._listeners[key](publications)
        except Exception:  # a service's fault must not keep the connections waiting
            _log.exception("listener failed")

    def _drop(self, key: str, error: InvalidMessage) -> None:
        """Count a publication that is not delivered, and name its channel; a line a second at most."""
        reason = "unknown_version" if isinstance(error, UnknownVersion) else "invalid"
        self._metrics.drops.labels(reason).inc()
        now_s = perf_counter()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.warning("publication dropped", channel=key, reason=reason)

    def _sort(self, channel: Channel, payloads: Sequence[bytes]) -> None:
        """Check the payloads, and line them up: those for everybody together, the addressed ones each alone."""
        sound: list[bytes] = []
        values: list[Json] = []
        for data in payloads:
            payload, selector = data, None
            try:
                if data[:1] == MARK:
                    publication = read_publication(data)
                    payload, selector = publication.payload, publication.selector
                value = decode_json(payload)
            except InvalidMessage as error:
                self._drop(channel.key, error)
                continue
            if data is payload:
                self._metrics.unsequenced_publications.inc()
            if selector is not None:
                if not any(selector.selects(each) for group in channel.groups.values() for each in group):
                    continue  # nobody here: what is around it stays one write
                self._line_up(channel, sound, values, None)
                sound, values = [], []
                self._line_up(channel, [payload], [value], selector)
            else:
                sound.append(payload)
                values.append(value)
        self._line_up(channel, sound, values, None)

    def _line_up(
        self, channel: Channel, payloads: Sequence[bytes], values: Sequence[Json], selector: Selector | None
    ) -> None:
        """Render the payloads, once per encoding, and line up a pass per dialect."""
        if not payloads:
            return
        by_encoding: dict[Encoding, list[bytes]] = {}
        for dialect, group in channel.groups.items():
            connections = tuple(group if selector is None else filter(selector.selects, group))
            if not connections:
                continue
            messages = by_encoding.get(dialect.encoding)
            if messages is None:
                encoded = payloads if dialect.encoding is Encoding.JSON else [encode_msgpack(value) for value in values]
                render = channel.template.render
                messages = by_encoding[dialect.encoding] = [render(each, dialect.encoding) for each in encoded]
            data = b"".join(map(dialect.frame, messages))
            self._metrics.deliveries.inc(len(messages) * len(connections))
            self._metrics.sent_bytes.inc(len(data) * len(connections))
            if channel.held is not None:
                connections = self._hold(channel.held, connections, data)
            self._passes.append(_Pass(channel, dialect, connections, data))

    def _run(self) -> None:
        """Write up to a chunk; go on in the next tick if there is more."""
        was_paused, self._next = self._next is not None, None
        budget = self._chunk
        passes = self._passes
        while passes and budget > 0:
            current = passes[0]
            data = current.data
            connections = current.connections
            if was_paused or len(connections) > budget:
                # who left between two chunks is not written to any more
                group = current.channel.groups.get(current.dialect, {})
                connections = connections[current.done : current.done + budget]
                connections = tuple(each for each in connections if each in group)
                current.done += budget
            for connection in connections:
                try:  # costs nothing where nothing is raised
                    connection.write(data)
                except Exception:  # one wire's fault must not keep the others waiting, now and for ever
                    self._give_up(connection)
            budget -= len(connections)
            if not current.done or current.done >= len(current.connections):
                passes.popleft()
        if passes:
            if not was_paused:
                self._source.pause()
            self._next = asyncio.get_running_loop().call_soon(self._run)
            return
        if was_paused:
            self._source.resume()
        now_s = perf_counter()
        self._metrics.fanout_pass.observe(now_s - self._started_s)
        if self._is_probe_here and self._probe is not None:
            self._metrics.publish_to_write.observe(now_s - self._probe[2])
            self._probe, self._is_probe_here = None, False

    @staticmethod
    def _hold(
        held: dict[Connection, list[bytes]], connections: tuple[Connection, ...], data: bytes
    ) -> tuple[Connection, ...]:
        """Keep bytes for those that are held; returns the others."""
        for connection in held.keys() & set(connections):
            waiting = held[connection]
            waiting.append(data)
            if sum(map(len, waiting)) > connection.outbox_max_bytes:
                waiting.clear()
                connection.close(CloseCode.SLOW_CONSUMER, "Slow consumer")
        return tuple(each for each in connections if each not in held)

    @staticmethod
    def _give_up(connection: Connection) -> None:
        _log.exception("write failed", connection=connection.id)
        with suppress(Exception):  # its wire is broken
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
