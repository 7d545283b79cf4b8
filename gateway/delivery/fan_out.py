"""Fan-out: deliver the publications of one read from the broker to every local subscriber. The hot path.

Rules:
- The publications of a read for one channel are checked once and encoded once for all subscribers of the same form
  (`snorky.gateway.delivery.batches`), with one write per connection (`snorky.gateway.delivery.write_queue`). CPU grows
  with passes x clients, not messages.
- A publication addressed to some of the subscribers is a separate pass, in its order among the others.
- For channels in recovery tracking (`snorky.gateway.delivery.gap_repair`), the history filter decides what to deliver:
  each subscriber receives it in the same order, with `gap` in its place.
- A payload larger than clients or backends may publish is dropped, or replaced by a tombstone: otherwise the node would
  buffer it for every slow client and then close each of them.
- No task, timer or queue per message.
"""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Final, Protocol

import structlog

from snorky.gateway.config.limits import PAYLOAD_MAX_BYTES
from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.native.direct_sender import SendMany
from snorky.gateway.delivery.batches import BatchEncoder
from snorky.gateway.delivery.channel_order import Gap, Late, Step
from snorky.gateway.delivery.delivery_rules import DeliveryRules
from snorky.gateway.delivery.flush_intervals import FlushIntervals
from snorky.gateway.delivery.hub import Channel, Hub, RosterEvent
from snorky.gateway.delivery.write_queue import CHUNK, Source, WriteQueue
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.codec import Json, decode_json
from snorky.gateway.protocol.publication import (
    MARK,
    Change,
    Position,
    Publication,
    Selector,
    TooLarge,
    UnknownVersion,
    read_publication,
    tombstone,
)

__all__ = ["Fanout", "HistoryFilter", "Listener", "OnGap", "RosterFilter"]

COMPLAIN_EVERY_S: Final = 1.0  # the metric counts all; many invalid publications must not flood the log
Listener = Callable[[Sequence[Publication]], None]  # a callback of this node: the publications of one read, in order
OnGap = Callable[[Position], None]  # publications are missing; called with the position after which it continues

_log = structlog.get_logger("snorky.fanout")


class HistoryFilter(Protocol):
    """Tracks the order of channels with a history."""

    def __contains__(self, key: str) -> bool:
        """True if the channel is tracked."""

    def receive(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        """Process received publications; returns what to deliver now."""


class RosterFilter(Protocol):
    """Tracks which roster changes subscribers have received."""

    def receive(self, roster: str, change: Change) -> bool:
        """Process a received change. False: subscribers have been notified of it already."""

    def known(self, roster: str) -> int:
        """For the last change received: subscribers with a list up to this version know it already; 0 = none does."""


class _NoHistory:
    """A history filter that tracks no channel."""

    def __contains__(self, key: str) -> bool:
        return False

    def receive(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        return list(publications)


class Fanout:
    """Delivers publications to the subscribers in a hub.

    history_filter: of channels with a history. roster_filter: of rosters. payload_max_bytes: of one publication.
    send_many: see `WriteQueue`.
    """

    def __init__(
        self,
        hub: Hub,
        source: Source,
        metrics: Metrics,
        *,
        history_filter: HistoryFilter | None = None,
        roster_filter: RosterFilter | None = None,
        chunk: int = CHUNK,
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
        send_many: SendMany | None = None,
    ) -> None:
        self._hub = hub
        self._metrics = metrics
        self._history_filter: HistoryFilter = history_filter or _NoHistory()
        self._roster_filter = roster_filter
        self._payload_max_bytes = payload_max_bytes
        self._listeners: dict[str, tuple[Listener, OnGap | None]] = {}
        self.rules = DeliveryRules()
        self.intervals = FlushIntervals(self.rules, self.deliver)
        self.intervals.on_dropped = lambda count: metrics.drops.labels("no_subscriber").inc(count)
        metrics.delayed_bytes.set_function(lambda: self.intervals.total_bytes)
        self._write_queue = WriteQueue(source, chunk=chunk, on_done=self._on_done, send_many=send_many)
        self._write_queue.on_conflated = metrics.conflated_deliveries.inc
        self._batches = BatchEncoder(hub, self._write_queue, metrics, self.rules)
        self.before_delivery: Callable[[], object] = lambda: None  # set by the node
        self.end_at_gap: Callable[[Connection, str], object] = lambda *_: None  # likewise; must not raise
        self._started_s = 0.0
        self._probe: tuple[str, bytes, float] | None = None
        self._is_probe_here = False
        self._complained_s = -COMPLAIN_EVERY_S

    def expect(self, key: str, payload: bytes) -> None:
        """Measure the time until this publication of our own is written to its clients; one at a time is measured.

        Not on channels with `flush_ms`, whose publications wait on purpose.
        """
        now_s = perf_counter()
        if self.rules.interval_s(key):
            return
        if self._probe is None or now_s - self._probe[2] > 10.0:  # it was lost, or has no subscribers here
            self._probe = (key, payload, now_s)

    def listen(self, key: str, listener: Listener, on_gap: OnGap | None = None) -> None:
        """Register a callback for a channel's publications; it is called before connections are written to."""
        self._listeners[key] = listener, on_gap

    def unlisten(self, key: str, listener: Listener | None = None) -> bool:
        """Undo `listen`, only for this listener if one is given. False = it was not registered."""
        if key not in self._listeners or listener not in (None, self._listeners[key][0]):
            return False
        del self._listeners[key]
        return True

    def is_listened(self, key: str) -> bool:
        """True if a callback is registered for this channel."""
        return key in self._listeners

    def deliver(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Deliver the publications of one read. batch: per channel key, raw payloads in order."""
        self._begin()
        received = 0
        for key, payloads in batch.items():
            received += len(payloads)
            channel = self._hub.get(key)
            if self._probe is not None and self._probe[0] == key and self._probe[1] in payloads:
                self._is_probe_here = channel is not None
            if key not in self._listeners and channel is None:  # its last subscriber has just left
                self._metrics.drops.labels("no_subscriber").inc(len(payloads))
            elif key in self._history_filter:
                self._follow(key, self._history_filter.receive(key, self._read(key, payloads)))
            else:
                if key in self._listeners:
                    self._call_listener(key, payloads, is_only=channel is None)
                if channel is not None:
                    self._sort(channel, payloads)
        self._metrics.publications_received.inc(received)
        self._write_queue.run()

    def pass_on(self, key: str, steps: Sequence[Step]) -> None:
        """Deliver the steps for which a channel's history filter had to read history."""
        self._begin()
        self._follow(key, steps)
        self._write_queue.run()

    def deliver_notices(self, key: str, notices: Sequence[bytes], version: int = 0) -> None:
        """Deliver this node's own notices, bare or addressed publications, to a channel's local subscribers.

        version: clients that have received a list of this or a later version do not get them.
        """
        self._begin()
        for publication in self._read(key, notices):
            checked, event = self._check(key, publication), None
            if version or publication.change is not None:
                event = RosterEvent(version, is_missed=True, change=publication.change)
            if checked is not None:
                self._deliver_together(key, [checked], publication.selector, event)
        self._write_queue.run()

    def stop(self) -> None:
        """Discard the deliveries in progress."""
        self.intervals.drain()
        self._write_queue.stop()

    def _begin(self) -> None:
        self.before_delivery()
        if self._write_queue.is_idle:
            self._started_s = perf_counter()

    def _on_done(self) -> None:
        now_s = perf_counter()
        self._metrics.fanout_pass.observe(now_s - self._started_s)
        if self._is_probe_here and self._probe is not None:
            self._metrics.delivery_latency.observe(now_s - self._probe[2])
            self._probe, self._is_probe_here = None, False

    def _drop(self, key: str, error: InvalidMessage) -> None:
        """Count a publication that is not delivered, and log its channel; at most one line a second."""
        reason = error.code if isinstance(error, (UnknownVersion, TooLarge)) else "invalid"
        self._metrics.drops.labels(reason).inc()
        now_s = perf_counter()
        if now_s - self._complained_s >= COMPLAIN_EVERY_S:
            self._complained_s = now_s
            _log.warning("publication dropped", channel=key, reason=reason)

    def _check_size(self, payload: bytes) -> None:
        if len(payload) > self._payload_max_bytes:
            raise TooLarge("Too large")

    def _hand(self, key: str, publications: Sequence[Publication]) -> None:
        """Call the channel's callback with publications."""
        try:
            if publications:
                self._listeners[key][0](publications)
        except Exception:  # an error of a service must not prevent delivery to the connections
            _log.exception("listener failed")

    # -- channels without a history ----------------------------------------------------------------------------------

    def _call_listener(self, key: str, payloads: Sequence[bytes], *, is_only: bool) -> None:
        """Call the callback with a read's valid publications. is_only: no subscribers, so count invalid ones here."""
        publications = []
        for data in payloads:
            try:
                publication = read_publication(data)
                self._check_size(publication.payload)
                decode_json(publication.payload)
            except InvalidMessage as error:
                if is_only:
                    self._drop(key, error)
            else:
                publications.append(publication)
        self._hand(key, publications)

    def _sort(self, channel: Channel, payloads: Sequence[bytes]) -> None:
        """Check the payloads and queue passes: one for those to all subscribers, one for each addressed publication."""
        valid: list[bytes] = []
        values: list[Json] = []
        described: dict[int, bytes] = {}
        bare = 0
        for data in payloads:
            payload, selector, change, event, attributes = data, None, None, None, b""
            try:
                if data[:1] == MARK:
                    publication = read_publication(data)
                    payload, selector, change = publication.payload, publication.selector, publication.change
                    attributes = publication.attributes
                    if publication.is_tombstone:
                        raise InvalidMessage("Malformed MessagePack")
                self._check_size(payload)
                value = decode_json(payload)
            except InvalidMessage as error:
                self._drop(channel.key, error)
                continue
            if change is not None:
                event = self._receive(channel.key, change)
                if event is None:
                    continue
            bare += data is payload or (attributes != b"" and publication.position is None)
            if selector is not None or event is not None:
                if (
                    selector is None
                    or channel.follows_connections
                    or any(selector.selects(each) for group in channel.groups.values() for each in group)
                ):  # else no local subscriber is addressed, and its neighbours remain one write
                    self._batches.plain(channel, valid, values, attributes=described)
                    valid, values, described = [], [], {}
                    self._batches.plain(channel, [payload], [value], selector, event, attributes={0: attributes})
                if event is not None:
                    channel.heard = max(channel.heard, event.version)
            else:
                if attributes:
                    described[len(valid)] = attributes
                valid.append(payload)
                values.append(value)
        if bare:
            self._metrics.unsequenced_publications.inc(bare)
        self._batches.plain(channel, valid, values, attributes=described)

    # -- channels with a history -------------------------------------------------------------------------------------

    def _read(self, key: str, payloads: Sequence[bytes]) -> list[Publication]:
        publications = []
        for data in payloads:
            try:
                publication = read_publication(data)
                if publication.position is not None and len(publication.payload) > self._payload_max_bytes:
                    publication = tombstone(publication, "too_large")  # now: the filter may buffer it for a while
                publications.append(publication)
            except InvalidMessage as error:
                self._drop(key, error)
        return publications

    def _follow(self, key: str, steps: Sequence[Step]) -> None:
        """Deliver steps in order; consecutive publications for the same subscribers are joined."""
        batch: list[tuple[Publication, Json]] = []
        for step in steps:
            if isinstance(step, Publication):
                checked = self._check(key, step)
                if checked is None:
                    continue
                if step.selector is None and step.change is None:
                    batch.append(checked)
                    continue
                event = None if step.change is None else self._receive(key, step.change)
                if step.change is not None and event is None:
                    continue
                self._deliver_together(key, batch)
                batch = []
                self._deliver_together(key, [checked], step.selector, event)
                continue
            self._deliver_together(key, batch)
            batch = []
            if isinstance(step, Gap):
                self._tell_gap(key, step.position)
            else:
                self._deliver_late(key, step)
        self._deliver_together(key, batch)

    def _check(self, key: str, publication: Publication) -> tuple[Publication, Json] | None:
        """Decode a payload; None = deliver nothing. A publication with a position becomes a tombstone instead."""
        try:
            if publication.fault == "too_large":
                raise TooLarge("Too large")
            if publication.is_tombstone:
                raise InvalidMessage("Malformed MessagePack")
            self._check_size(publication.payload)
            value = decode_json(publication.payload)
        except InvalidMessage as error:
            self._drop(key, error)
            return (
                None if publication.position is None else (tombstone(publication, publication.fault or "invalid"), None)
            )
        if publication.position is None and publication.selector is None and publication.hint is None:
            self._metrics.unsequenced_publications.inc()
        return publication, value

    def _receive(self, key: str, change: Change) -> RosterEvent | None:
        """Process a change of a roster; None = subscribers have been notified of it already."""
        if self._roster_filter is None:
            return RosterEvent(change.version, change=change)
        if self._roster_filter.receive(key, change):
            return RosterEvent(change.version, self._roster_filter.known(key), change=change)
        channel = self._hub.get(key)
        if channel is not None:
            channel.heard = max(channel.heard, change.version)
        return None

    def _deliver_together(
        self,
        key: str,
        checked: Sequence[tuple[Publication, Json]],
        selector: Selector | None = None,
        event: RosterEvent | None = None,
    ) -> None:
        if key in self._listeners:
            self._hand(key, [publication for publication, _ in checked])
        channel = self._hub.get(key)
        if channel is None:
            return
        if channel.groups:
            valid = [(each, value) for each, value in checked if not each.is_tombstone]
            payloads, values = [each.payload for each, _ in valid], [value for _, value in valid]
            described = {place: each.attributes for place, (each, _) in enumerate(valid) if each.attributes}
            self._batches.plain(channel, payloads, values, selector, event, attributes=described)
        self._batches.positioned(channel, checked, selector, event)
        if event is not None and not event.is_missed:
            channel.heard = max(channel.heard, event.version)

    def _deliver_late(self, key: str, late: Late) -> None:
        channel, checked = self._hub.get(key), self._check(key, late.publication)
        if channel is not None and checked is not None and not checked[0].is_tombstone:
            publication = late.publication
            self._batches.plain(channel, [publication.payload], [checked[1]], attributes={0: publication.attributes})

    def _tell_gap(self, key: str, position: Position) -> None:
        _listener, on_gap = self._listeners.get(key, (None, None))
        try:
            if on_gap is not None:
                on_gap(position)
        except Exception:  # as in `_hand`
            _log.exception("listener failed")
        channel = self._hub.get(key)
        if channel is None or channel.gap is None:
            return
        for dialect, group in tuple(channel.positioned.items()):
            if dialect.rendering is not None and not dialect.rendering.bears_gaps:
                for connection in tuple(group):
                    self.end_at_gap(connection, key)
        self._batches.notice(channel, channel.gap(position))
