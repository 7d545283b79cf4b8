"""Fan-out: what one read from the broker brought, to every local subscriber. The hot path.

Rules:
- What a read brought for a channel is checked once, and becomes one piece of bytes for all who get it alike
  (`gateway.pieces`), and one write per connection (`gateway.passes`). CPU follows passes x clients, not messages.
- What is addressed to some of the subscribers is a pass of its own, in its place among the others.
- Of channels that are followed (`gateway.repair`) the follower says what is delivered: each subscriber gets it in the
  same order, a gap in its place.
- A payload that is larger than clients or backends may publish is dropped, or a tombstone: the node would hold it for
  every client that is slow, and end each of them.
- No task, timer or queue per message.
"""

from collections.abc import Callable, Mapping, Sequence
from time import perf_counter
from typing import Final, Protocol

import structlog

from gateway.codec import Json, decode_json
from gateway.errors import InvalidMessage
from gateway.hub import Channel, Hub, News
from gateway.metrics import Metrics
from gateway.passes import CHUNK, Passes, Source
from gateway.pieces import Pieces
from gateway.publication import (
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
from gateway.sequence import Gap, Late, Step
from gateway.settings import PAYLOAD_MAX_BYTES

__all__ = ["Attendant", "Fanout", "Follower", "Listener", "OnGap"]

COMPLAIN_EVERY_S: Final = 1.0  # the metric counts them all; a flood of bad ones must not flood the log
Listener = Callable[[Sequence[Publication]], None]  # of this node itself: what one read brought, in order
OnGap = Callable[[Position], None]  # and where it goes on, if it cannot have all

_log = structlog.get_logger("snorky.fanout")


class Follower(Protocol):
    """Who knows the order of channels that keep a history."""

    def __contains__(self, key: str) -> bool:
        """True if a channel is followed."""

    def hear(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        """Take what was heard; returns what is to be delivered now."""


class Attendant(Protocol):
    """Who knows what subscribers were told of rosters."""

    def hear(self, roster: str, change: Change) -> bool:
        """Take a change whose notice came. False: they have been told already."""

    def known(self, roster: str) -> int:
        """Tell of the change heard last: who was told a list of at most this version knows it; 0 = nobody."""


class _Nobody:
    """A follower of no channel."""

    def __contains__(self, key: str) -> bool:
        return False

    def hear(self, key: str, publications: Sequence[Publication]) -> list[Step]:
        return list(publications)


class Fanout:
    """Delivers publications to the subscribers in a hub.

    follower: of channels that keep a history. attendant: of rosters. payload_max_bytes: of one publication.
    """

    def __init__(
        self,
        hub: Hub,
        source: Source,
        metrics: Metrics,
        *,
        follower: Follower | None = None,
        attendant: Attendant | None = None,
        chunk: int = CHUNK,
        payload_max_bytes: int = PAYLOAD_MAX_BYTES,
    ) -> None:
        self._hub = hub
        self._metrics = metrics
        self._follower: Follower = follower or _Nobody()
        self._attendant = attendant
        self._payload_max_bytes = payload_max_bytes
        self._listeners: dict[str, tuple[Listener, OnGap | None]] = {}
        self._passes = Passes(source, chunk=chunk, on_done=self._on_done)
        self._pieces = Pieces(hub, self._passes, metrics)
        self._started_s = 0.0
        self._probe: tuple[str, bytes, float] | None = None
        self._is_probe_here = False
        self._complained_s = -COMPLAIN_EVERY_S

    def expect(self, key: str, payload: bytes) -> None:
        """Time this publication of our own until it is written to its clients; one at a time is timed."""
        now_s = perf_counter()
        if self._probe is None or now_s - self._probe[2] > 10.0:  # it was lost, or its channel has nobody here
            self._probe = (key, payload, now_s)

    def listen(self, key: str, listener: Listener, on_gap: OnGap | None = None) -> None:
        """Hand what comes for a channel to this node's own listener too, before the connections."""
        self._listeners[key] = listener, on_gap

    def unlisten(self, key: str, listener: Listener | None = None) -> bool:
        """Undo `listen`, of this listener only if one is given. False = it was not there."""
        if key not in self._listeners or listener not in (None, self._listeners[key][0]):
            return False
        del self._listeners[key]
        return True

    def is_listened(self, key: str) -> bool:
        """True if the node itself hears this channel."""
        return key in self._listeners

    def deliver(self, batch: Mapping[str, Sequence[bytes]]) -> None:
        """Deliver what one read brought. Per channel key: payloads in order, as they came."""
        self._begin()
        received = 0
        for key, payloads in batch.items():
            received += len(payloads)
            channel = self._hub.get(key)
            if self._probe is not None and self._probe[0] == key and self._probe[1] in payloads:
                self._is_probe_here = channel is not None
            if key not in self._listeners and channel is None:  # it lingers: its last subscriber left a moment ago
                self._metrics.drops.labels("no_subscriber").inc(len(payloads))
            elif key in self._follower:
                self._follow(key, self._follower.hear(key, self._read(key, payloads)))
            else:
                if key in self._listeners:
                    self._tell(key, payloads, is_only=channel is None)
                if channel is not None:
                    self._sort(channel, payloads)
        self._metrics.publications_received.inc(received)
        self._passes.run()

    def pass_on(self, key: str, steps: Sequence[Step]) -> None:
        """Deliver what a channel's follower had to fetch."""
        self._begin()
        self._follow(key, steps)
        self._passes.run()

    def tell(self, key: str, notices: Sequence[bytes], version: int = 0) -> None:
        """Deliver what this node itself has to say to a channel's subscribers here: bare or addressed publications.

        version: who was told a later list of the roster knows it already.
        """
        self._begin()
        news = News(version, is_missed=True) if version else None
        for publication in self._read(key, notices):
            checked = self._check(key, publication)
            if checked is not None:
                self._deliver_together(key, [checked], publication.selector, news)
        self._passes.run()

    def stop(self) -> None:
        """Forget what is under way."""
        self._passes.stop()

    def _begin(self) -> None:
        if self._passes.is_idle:
            self._started_s = perf_counter()

    def _on_done(self) -> None:
        now_s = perf_counter()
        self._metrics.fanout_pass.observe(now_s - self._started_s)
        if self._is_probe_here and self._probe is not None:
            self._metrics.publish_to_write.observe(now_s - self._probe[2])
            self._probe, self._is_probe_here = None, False

    def _drop(self, key: str, error: InvalidMessage) -> None:
        """Count a publication that is not delivered, and name its channel; a line a second at most."""
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
        """Hand publications to the node's own listener."""
        try:
            if publications:
                self._listeners[key][0](publications)
        except Exception:  # a service's fault must not keep the connections waiting
            _log.exception("listener failed")

    # -- channels that keep nothing ----------------------------------------------------------------------------------

    def _tell(self, key: str, payloads: Sequence[bytes], *, is_only: bool) -> None:
        """Hand a read's sound publications to the node's own listener. is_only: nobody else sees what is not sound."""
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
        """Check the payloads, and line them up: those for everybody together, the addressed ones each alone."""
        sound: list[bytes] = []
        values: list[Json] = []
        for data in payloads:
            payload, selector, change, news = data, None, None, None
            try:
                if data[:1] == MARK:
                    publication = read_publication(data)
                    payload, selector, change = publication.payload, publication.selector, publication.change
                    if publication.is_tombstone:
                        raise InvalidMessage("Malformed MessagePack")
                self._check_size(payload)
                value = decode_json(payload)
            except InvalidMessage as error:
                self._drop(channel.key, error)
                continue
            if change is not None:
                news = self._hear(channel.key, change)
                if news is None:
                    continue
            if data is payload:
                self._metrics.unsequenced_publications.inc()
            if selector is not None or news is not None:
                if selector is None or any(
                    selector.selects(each) for group in channel.groups.values() for each in group
                ):  # else nobody is here, and what is around it stays one write
                    self._pieces.plain(channel, sound, values)
                    sound, values = [], []
                    self._pieces.plain(channel, [payload], [value], selector, news)
                if news is not None:
                    channel.heard = max(channel.heard, news.version)
            else:
                sound.append(payload)
                values.append(value)
        self._pieces.plain(channel, sound, values)

    # -- channels that are followed ----------------------------------------------------------------------------------

    def _read(self, key: str, payloads: Sequence[bytes]) -> list[Publication]:
        publications = []
        for data in payloads:
            try:
                publication = read_publication(data)
                if publication.position is not None and len(publication.payload) > self._payload_max_bytes:
                    publication = tombstone(publication, "too_large")  # at once: it may be kept for a while
                publications.append(publication)
            except InvalidMessage as error:
                self._drop(key, error)
        return publications

    def _follow(self, key: str, steps: Sequence[Step]) -> None:
        """Deliver steps in their order; what is for the same subscribers, and in a row, together."""
        together: list[tuple[Publication, Json]] = []
        for step in steps:
            if isinstance(step, Publication):
                checked = self._check(key, step)
                if checked is None:
                    continue
                if step.selector is None and step.change is None:
                    together.append(checked)
                    continue
                news = None if step.change is None else self._hear(key, step.change)
                if step.change is not None and news is None:
                    continue
                self._deliver_together(key, together)
                together = []
                self._deliver_together(key, [checked], step.selector, news)
                continue
            self._deliver_together(key, together)
            together = []
            if isinstance(step, Gap):
                self._tell_gap(key, step.position)
            else:
                self._deliver_late(key, step)
        self._deliver_together(key, together)

    def _check(self, key: str, publication: Publication) -> tuple[Publication, Json] | None:
        """Decode a payload; None = nobody gets it. What has a position keeps its place, if only as a tombstone."""
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

    def _hear(self, key: str, change: Change) -> News | None:
        """Take a change of a roster; None = subscribers have been told of it already."""
        if self._attendant is None:
            return News(change.version)
        if self._attendant.hear(key, change):
            return News(change.version, self._attendant.known(key))
        channel = self._hub.get(key)
        if channel is not None:
            channel.heard = max(channel.heard, change.version)
        return None

    def _deliver_together(
        self,
        key: str,
        checked: Sequence[tuple[Publication, Json]],
        selector: Selector | None = None,
        news: News | None = None,
    ) -> None:
        if key in self._listeners:
            self._hand(key, [publication for publication, _ in checked])
        channel = self._hub.get(key)
        if channel is None:
            return
        if channel.groups:
            sound = [(each.payload, value) for each, value in checked if not each.is_tombstone]
            payloads, values = [payload for payload, _ in sound], [value for _, value in sound]
            self._pieces.plain(channel, payloads, values, selector, news)
        self._pieces.positioned(channel, checked, selector, news)
        if news is not None and not news.is_missed:
            channel.heard = max(channel.heard, news.version)

    def _deliver_late(self, key: str, late: Late) -> None:
        channel, checked = self._hub.get(key), self._check(key, late.publication)
        if channel is not None and checked is not None and not checked[0].is_tombstone:
            self._pieces.plain(channel, [late.publication.payload], [checked[1]])

    def _tell_gap(self, key: str, position: Position) -> None:
        _listener, on_gap = self._listeners.get(key, (None, None))
        try:
            if on_gap is not None:
                on_gap(position)
        except Exception:  # as in `_hand`
            _log.exception("listener failed")
        channel = self._hub.get(key)
        if channel is not None and channel.gap is not None:
            self._pieces.notice(channel, channel.gap(position))
