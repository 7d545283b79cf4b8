"""Fan-out: what one read from the broker brought, to every local subscriber. The hot path.

Rules:
- Per channel and dialect a publication is checked, rendered and framed once; what a read brought for a
  channel is one piece of bytes, and one write per connection. CPU follows passes x clients, not messages.
- Passes run one after another, in the order the broker brought them: nothing overtakes.
- A pass over very many clients is cut into chunks, a loop tick each, so that the loop stays responsive
  (5,000 writes block it for 65 ms). While passes are under way the broker is not read: its bytes wait in the
  socket, and the next read brings more at once, which costs less per publication.
- No task, timer or queue per message.
"""

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from time import perf_counter
from typing import Final, Protocol

import structlog

from gateway.codec import Encoding, decode_json, encode_msgpack
from gateway.connection import Connection
from gateway.errors import CloseCode, InvalidMessage
from gateway.frames import Dialect
from gateway.hub import Channel, Hub
from gateway.metrics import Metrics

__all__ = ["Fanout", "Source"]

CHUNK: Final = 1000  # writes per loop tick: 15 ms on a machine where one takes 15 us
COMPLAIN_EVERY_S: Final = 1.0  # the metric counts them all; a flood of bad ones must not flood the log
SEQUENCED: Final = b"\xc1"  # begins a publication with a position: never first in JSON or MessagePack

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

    def deliver(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Deliver what one read brought. Per channel key: payloads in order, as they came."""
        if not self._passes:
            self._started_s = perf_counter()
        received = 0
        for key, payloads in batch.items():
            received += len(payloads)
            channel = self._hub.get(key)
            if channel is None:  # it lingers: its last subscriber left a moment ago
                self._metrics.drops.labels("no_subscriber").inc(len(payloads))
                continue
            if self._probe is not None and self._probe[0] == key and self._probe[1] in payloads:
                self._is_probe_here = True
            self._prepare(channel, payloads)
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

    def _prepare(self, channel: Channel, payloads: Sequence[bytes]) -> None:
        """Check and render the payloads, once per encoding, and line up a pass per dialect."""
        values = []
        sound = []
        for payload in payloads:
            try:
                values.append(decode_json(payload))
                sound.append(payload)
            except InvalidMessage:
                reason = "unknown_version" if payload[:1] == SEQUENCED else "invalid"
                self._metrics.drops.labels(reason).inc()
                self._complain(channel.key, reason)
        if not sound:
            return
        self._metrics.unsequenced_publications.inc(len(sound))
        by_encoding: dict[Encoding, list[bytes]] = {}
        for dialect, group in channel.groups.items():
            messages = by_encoding.get(dialect.encoding)
            if messages is None:
                encoded = sound if dialect.encoding is Encoding.JSON else [encode_msgpack(value) for value in values]
                render = channel.template.render
                messages = by_encoding[dialect.encoding] = [render(each, dialect.encoding) for each in encoded]
            data = b"".join(map(dialect.frame, messages))
            self._passes.append(_Pass(channel, dialect, tuple(group), data))
            self._metrics.deliveries.inc(len(messages) * len(group))
            self._metrics.sent_bytes.inc(len(data) * len(group))

    def _run(self) -> None:
        """Write up to a chunk; go on in the next tick if there is more."""
        was_paused, self._next = self._next is not None, None
        budget = self._chunk
        passes = self._passes
        while passes and budget > 0:
            current = passes[0]
            data = current.data
            connections = current.connections
            if current.done or len(connections) > budget:
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

    def _complain(self, key: str, reason: str) -> None:
        """Name a channel that publications are dropped of; a line a second at most."""
        now_s = perf_counter()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.warning("publication dropped", channel=key, reason=reason)

    @staticmethod
    def _give_up(connection: Connection) -> None:
        _log.exception("write failed", connection=connection.id)
        with suppress(Exception):  # its wire is broken
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
