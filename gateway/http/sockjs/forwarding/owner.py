"""SessionOwner: fills responses of other nodes from sessions of this node. Messages between nodes: see Requester."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, Protocol

import structlog

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.sockjs.binding import Verdict, Who
from snorky.gateway.http.sockjs.forwarding.remote_stream import RemoteStream
from snorky.gateway.http.sockjs.frames import decode_messages
from snorky.gateway.http.sockjs.session import Session

__all__ = ["LOST_S", "NOT_ADMITTED", "Answer", "SessionOwner", "give_up_unheard"]

LOST_S: Final = 15.0  # after this time without a message the other node has gone; a pause of Redis is shorter
UNHEARD_MAX: Final = 2  # so often in a row Redis must say that no node listens: a node may be reconnecting
QUIET_S: Final = 2.0  # after this time without a message, Redis is asked whether the other node still listens
SENDS_MAX: Final = 1_000  # concurrent messages from clients of other nodes

_log = structlog.get_logger("snorky.sockjs")

Answer = tuple[int, str]  # HTTP status and text; or NOT_ADMITTED and the verdict
NOT_ADMITTED: Final = 401


class _Heard(Protocol):
    """A response that needs another node. unheard: how often in a row no node listened to that node's channel."""

    unheard: int


def give_up_unheard(
    numbers: Sequence[str],
    known: Mapping[str, _Heard],
    hearers: asyncio.Future[int],
    give_up: Callable[[str], None],
) -> None:
    """Give up responses whose other node is dead, without waiting for LOST_S: no node receives its channel.

    numbers: those that a message to that channel was about. hearers: what Redis answered to it.
    """
    if hearers.cancelled() or hearers.exception() is not None:
        return
    for number in numbers:
        if number in known:
            known[number].unheard = 0 if hearers.result() else known[number].unheard + 1
            if known[number].unheard >= UNHEARD_MAX:
                give_up(number)


class SessionOwner:
    """Fills the responses of other nodes. find: returns a session of this node by id. tell: called with (node, *words).

    on_busy: called when `tick` is needed.
    """

    def __init__(
        self,
        node_id: str,
        find: Callable[[str], Session | None],
        tell: Callable[..., asyncio.Future[int]],
        on_busy: Callable[[], None],
    ) -> None:
        self._node_id = node_id
        self._find = find
        self._tell = tell
        self._schedule = on_busy
        self._lent: dict[str, RemoteStream] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def handlers(self) -> Mapping[str, Callable[..., None]]:
        """The handler of each message of an asking node, by its first word."""
        return {
            "attach": self.on_attach,
            "send": self.on_send,
            "ack": self.on_ack,
            "finished": self.on_finished,
            "gone": self.on_gone,
            "release": self.on_release,
            "alive": self.on_alive,
        }

    @property
    def is_busy(self) -> bool:
        """True while this node fills a response of another node."""
        return bool(self._lent)

    def tick(self, now_s: float) -> None:
        """Give up streams whose node has gone."""
        quiet: defaultdict[str, list[str]] = defaultdict(list)
        for number, stream in tuple(self._lent.items()):
            if now_s - stream.heard_s > LOST_S:
                self.on_gone(number)
            elif now_s - stream.heard_s > QUIET_S:
                quiet[stream.asker].append(number)
        for asker, numbers in quiet.items():
            self._tell(asker, "known", []).add_done_callback(partial(self._on_told, numbers))

    async def stop(self) -> None:
        """Cancel messages in progress."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def on_attach(
        self, number: str, asker: str, session_id: str, is_streaming: bool, who: Sequence[Any] | None = None
    ) -> None:
        session = self._find(session_id)
        verdict = None if session is None else _judged(session, who)
        self._tell(asker, "attached", number, verdict)
        if session is None or verdict != "admitted":
            return
        stream = RemoteStream(
            session, asker, lambda *words: self._tell(asker, words[0], number, *words[1:]), is_streaming
        )
        self._lent[number] = stream
        self._schedule()
        session.attach(stream)

    def on_ack(self, number: str, size: int) -> None:
        if number in self._lent:
            self._lent[number].on_ack(size)

    def on_finished(self, number: str) -> None:
        stream = self._lent.pop(number, None)
        if stream is not None and stream.on_finished is not None:
            stream.on_finished()

    def on_gone(self, number: str) -> None:
        stream = self._lent.pop(number, None)
        if stream is not None:
            stream.on_lost()

    def on_release(self, number: str) -> None:
        stream = self._lent.get(number)
        if stream is not None:
            stream.session.release(stream)

    def on_alive(self, asker: str, numbers: list[str], finished: Sequence[str] = ()) -> None:
        for number in finished:
            self.on_finished(number)
        known = [number for number in numbers if number in self._lent]
        for number in known:
            self._lent[number].heard_s = asyncio.get_running_loop().time()
            self._lent[number].unheard = 0
        self._tell(asker, "known", known)

    def on_send(self, number: str, asker: str, session_id: str, body: str, who: Sequence[Any] | None = None) -> None:
        session = self._find(session_id)
        if session is not None and (verdict := _judged(session, who)) != "admitted":
            self._tell(asker, "sent", number, NOT_ADMITTED, verdict)
            return
        if session is None or len(self._tasks) >= SENDS_MAX:
            self._tell(asker, "sent", number, 404 if session is None else 503, "")
            return
        task = asyncio.get_running_loop().create_task(self._receive(session, number, asker, body))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _on_told(self, numbers: list[str], hearers: asyncio.Future[int]) -> None:
        give_up_unheard(numbers, self._lent, hearers, self.on_gone)

    async def _receive(self, session: Session, number: str, asker: str, body: str) -> None:
        try:
            await session.receive(decode_messages(body.encode()))
        except InvalidMessage as error:
            self._tell(asker, "sent", number, 500, str(error))
        except Exception:  # the top of this task
            _log.exception("processing a message for a session failed")
            self._tell(asker, "sent", number, 500, "")
        else:
            self._tell(asker, "sent", number, 204, "")


def _judged(session: Session, who: Sequence[Any] | None) -> Verdict:
    """Ask the session's binding. who: from `Who.words`; None = an older node, which does not send it."""
    return "credential" if who is None else session.binding.judge(Who.read(who))
