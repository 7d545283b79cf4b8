"""WriteQueue: write pieces of bytes to the connections of a channel, one piece after another. The hot path.

Rules:
- Passes run one after another, in the order in which they were queued.
- A pass over very many clients is split into chunks, one per loop tick, so that the loop stays responsive
  (5,000 writes block it for 65 ms). While passes are running, the broker is not read: its bytes stay in the
  socket, and the next read returns more at once, which costs less per publication.
- The extension module writes to all connections of a chunk in one call, where it is built; the rest is written by each
  connection itself (`snorky.gateway.connection.native.direct_sender`).
- A connection that unsubscribes in the meantime is not written to any more, nor one that subscribed (again) after
  the pass was queued.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from snorky.gateway.connection.connection import Connection
from snorky.gateway.connection.native.direct_sender import DIRECT_MIN, SendMany
from snorky.gateway.delivery.hub import Groups
from snorky.gateway.errors import CloseCode
from snorky.gateway.protocol.ws_frames import Dialect

__all__ = ["CHUNK", "Batch", "NewestMessages", "Source", "WriteQueue"]

CHUNK: Final = 1000  # writes per loop tick: 15 ms on a machine where one takes 15 us
OPENED_MAX: Final = 250  # connections that one piece of a pass prepares for the extension module: 2 us each

_log = structlog.get_logger("snorky.fanout")


class Source(Protocol):
    """The source of publications, which can be paused while passes are running: the broker."""

    def pause(self) -> None:
        """Stop reading."""

    def resume(self) -> None:
        """Resume reading."""


@dataclass(slots=True)
class NewestMessages:
    """The newest messages of a batch, one a subject, in their order. superseded: how many others the batch has.

    messages: with their subjects; None = it is about no subject.
    """

    messages: list[tuple[bytes | None, bytes]]
    superseded: int

    @classmethod
    def of(cls, subjects: Sequence[bytes | None], frames: Sequence[bytes]) -> "NewestMessages":
        """Find the newest. frames: of all messages of a batch; subjects: of each."""
        last = {subject: place for place, subject in enumerate(subjects) if subject is not None}
        messages = [
            (subject, frame)
            for place, (subject, frame) in enumerate(zip(subjects, frames, strict=True))
            if subject is None or last[subject] == place
        ]
        return cls(messages, len(frames) - len(messages))


@dataclass(slots=True)
class Batch:
    """One piece of bytes to write to connections of one group of a channel.

    joined: the number of the latest subscription when the pass was queued. newest: of a channel with `conflate`, what
    clients that do not read get instead.
    """

    groups: Groups
    dialect: Dialect
    connections: tuple[Connection, ...]
    data: bytes
    joined: int
    newest: NewestMessages | None = None
    done: int = 0  # how many of the connections have been written to


class WriteQueue:
    """Runs passes.

    on_done: called when all queued passes are complete. send_many: of the extension module, if any. on_conflated: gets
    the number of messages that newer ones replaced in outboxes.
    """

    def __init__(
        self,
        source: Source,
        *,
        chunk: int,
        on_done: Callable[[], None],
        send_many: SendMany | None = None,
    ) -> None:
        self._source = source
        self._send_many = send_many
        self._chunk = chunk
        self._on_done = on_done
        self.on_conflated: Callable[[int], object] = lambda _count: None
        self._passes: deque[Batch] = deque()
        self._next: asyncio.Handle | None = None  # set while passes continue in later ticks: the source is paused
        self.line_up = self._passes.append

    @property
    def is_idle(self) -> bool:
        """True if no pass is queued."""
        return not self._passes

    def run(self) -> None:
        """Start writing the queued passes, unless a later tick will do it already."""
        if self._next is None:
            self._run()

    def stop(self) -> None:
        """Discard all queued passes."""
        self._passes.clear()
        if self._next is not None:
            self._next.cancel()
            self._next = None
            self._source.resume()

    def _run(self) -> None:
        """Write up to a chunk; if there is more, continue in the next tick."""
        was_paused, self._next = self._next is not None, None
        budget = self._chunk
        passes = self._passes
        while passes and budget > 0:
            current = passes[0]
            if current.newest is not None:
                budget -= self._write_newest(current, current.newest, budget)
                if current.done >= len(current.connections):
                    passes.popleft()
                continue
            data = current.data
            connections = current.connections
            if was_paused or len(connections) > budget:
                group, joined = current.groups.get(current.dialect, {}), current.joined
                connections = connections[current.done : current.done + budget]
                connections = tuple(each for each in connections if 0 < group.get(each, 0) <= joined)
                current.done += budget
            if self._send_many is None or not self._send(self._send_many, connections, data):
                for connection in connections:
                    try:  # costs nothing unless it raises
                        connection.write(data)
                    except Exception:  # an error of one transport must not block the other connections
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
        self._on_done()

    def _write_newest(self, batch: Batch, newest: NewestMessages, budget: int) -> int:
        """Write a batch of a channel with `conflate`, until the budget is spent; returns the number of writes.

        A client that does not read gets only the newest messages, in place of those that wait for it.
        """
        group, connections = batch.groups.get(batch.dialect, {}), batch.connections
        spent = replaced = 0
        while batch.done < len(connections) and spent < budget:
            connection = connections[batch.done]
            batch.done += 1
            spent += 1
            if not 0 < group.get(connection, 0) <= batch.joined:
                continue
            try:
                if connection.is_behind:
                    spent += len(newest.messages)
                    replaced += newest.superseded + connection.hold_newest(newest.messages)
                else:
                    connection.write(batch.data)
            except Exception:  # as in `_run`
                self._give_up(connection)
        self.on_conflated(replaced)
        return spent

    def _send(self, send_many: SendMany, connections: tuple[Connection, ...], data: bytes) -> bool:
        """Write by the extension module; False = nothing was written, because it can use none of the connections."""
        if len(connections) < DIRECT_MIN:
            return False
        targets = [each.direct for each in connections]
        incomplete = send_many(targets, data)
        if incomplete is None:
            self._open(connections)
            return False
        for index, sent in incomplete:
            connection = connections[index]
            try:
                rest = memoryview(data)[sent:] if sent else data  # never a copy: all receivers share it
                connection.write(rest)  # type: ignore[arg-type]  # transports with a socket take any buffer
            except Exception:
                self._give_up(connection)
        self._open(connections[index] for index, _sent in incomplete if targets[index] is None)
        return True

    def _open(self, connections: Iterable[Connection]) -> None:
        """Prepare connections for the extension module, which the next pass uses for them."""
        left = OPENED_MAX
        for connection in connections:
            if connection.direct is not None:  # it has bytes in its transport's buffer
                continue
            try:
                left -= connection.open_direct()
            except Exception:
                self._give_up(connection)
            if not left:
                return

    @staticmethod
    def _give_up(connection: Connection) -> None:
        _log.exception("write failed", connection=connection.id)
        with suppress(Exception):  # its transport is broken
            connection.close(CloseCode.INTERNAL_ERROR, "Internal error")
