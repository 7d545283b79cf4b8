"""Requester: forwards requests for sessions of other nodes, through the broker. One channel per node; JSON arrays.

    asker -> owner    attach ID ASKER SESSION IS_STREAMING WHO    send ID ASKER SESSION BODY WHO    ack ID BYTES
                      finished ID    gone ID    release ID    alive ASKER [ID...] [FINISHED...]
    owner -> asker    attached ID VERDICT    part ID NUMBER TEXT    frame ID NUMBER TEXT    end ID NUMBER
                      sent ID STATUS TEXT    known [ID...]

WHO is a list, see Who.words; VERDICT is the result of the session's binding, null = there is no such session.

Rules:
- The session stays on its owner and fills a RemoteStream there; the asker writes the HTTP response.
- The bytes in transit are bounded: the owner counts them until the asker reports that they were written.
- Frames and parts of them are numbered: a missing one ends the session (1002). No frame is lost silently.
- `finished`: the response has ended and is written; `gone`: it is not, and will not be. The session waits for either.
  `alive` repeats the former, because Redis may have lost it.
- Each side notices within LOST_S that the other has gone: the asker sends what it still serves, the owner what it has.
- SessionOwner implements the owner's side; this module the asker's side and the channel of both.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.serving.response_stream import ResponseStream
from snorky.gateway.http.sockjs.binding import Verdict, Who
from snorky.gateway.http.sockjs.forwarding.owner import LOST_S, Answer, SessionOwner, give_up_unheard
from snorky.gateway.http.sockjs.frames import HEARTBEAT
from snorky.gateway.http.sockjs.session import Session
from snorky.gateway.node import Node
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.publication import Publication

__all__ = ["Requester"]

ANSWER_TIMEOUT_S: Final = 5.0
SEND_TIMEOUT_S: Final = 30.0  # the owner may have to wait for a busy service
ALIVE_MAX: Final = 1_000  # ids per message
REPEATS: Final = 3  # of `finished`, one at each beat

_log = structlog.get_logger("snorky.sockjs")


class _Forwarded:
    """A receiver on this node whose session is on another node."""

    def __init__(self, owner: str, stream: ResponseStream, now_s: float) -> None:
        self.owner = owner
        self.stream = stream
        self.expected = 0  # number of the next part or frame
        self.is_ended = False  # it gets no more frames, but those it has may not be written yet
        self.parts: list[str] = []  # of the next frame
        self.known_s = now_s
        self.unheard = 0  # how often in a row Redis had no receiver of the owner's channel
        self.verdict: asyncio.Future[Verdict | None] = asyncio.get_running_loop().create_future()


class Requester:
    """One node's side. find: returns a session of this node by id. beat_s: interval of the `alive` messages.

    kind: of the sessions; nodes send requests for each kind over channels of its own.
    """

    def __init__(self, node: Node, find: Callable[[str], Session | None], beat_s: float, kind: str) -> None:
        self._node = node
        self._beat_s = beat_s
        self._service = f"{kind} peer"  # no service can have this name
        self._session_owner = SessionOwner(node.node_id, find, self._tell, self._schedule)
        self._forwarded: dict[str, _Forwarded] = {}
        self._finished: dict[str, tuple[str, int]] = {}  # owner, and how often to repeat it
        self._sends: dict[str, asyncio.Future[Answer]] = {}
        self._count = 0
        self._is_stopping = False
        self._starting: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._handlers: dict[str, Callable[..., None]] = {
            **self._session_owner.handlers,
            "attached": self._on_attached,
            "part": self._on_part,
            "frame": self._on_frame,
            "end": self._on_end,
            "sent": self._on_sent,
            "known": self._on_known,
        }

    async def start(self) -> None:
        """Return when this node receives messages of the others. Idempotent. Raises BrokerUnavailable."""
        if self._starting is None:
            listening = self._node.channels.listen(self._service, self._node.node_id, self._on_publications)
            self._starting = asyncio.get_running_loop().create_task(listening)
        starting = self._starting
        try:
            await asyncio.shield(starting)
        except BaseException:
            if starting.done() and self._starting is starting:
                self._starting = None
            raise

    async def stop(self) -> None:
        """Stop everything."""
        await self._session_owner.stop()
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- the asker's side ----------------------------------------------------------------------------------------

    async def attach(self, owner: str, session_id: str, stream: ResponseStream, who: Who) -> Verdict | None:
        """Have a stream filled by a session of another node, if its binding admits the client. Returns the verdict.

        None = there is no such session. After `release_all`, the stream ends at once, so that its client asks again.
        Raises BrokerUnavailable.
        """
        await self.start()
        if self._is_stopping:
            stream.send(HEARTBEAT)
            stream.end()
            return "admitted"
        number = self._new_id()
        forwarded = self._forwarded[number] = _Forwarded(owner, stream, asyncio.get_running_loop().time())
        stream.on_written = lambda size: self._acknowledge(owner, number, size)
        stream.on_lost = lambda: self._drop(number)
        stream.on_finished = lambda: self._finish(number)
        self._schedule()
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                me, words = self._node.node_id, who.words()
                hearers = await self._tell(owner, "attach", number, me, session_id, stream.is_streaming, words)
                verdict = await forwarded.verdict if hearers else None
                if verdict == "admitted":
                    return verdict
        except BaseException as error:
            stream.lose()
            if isinstance(error, TimeoutError):
                raise BrokerUnavailable("sockjs") from None
            raise
        self._forwarded.pop(number, None)
        return verdict

    async def send(self, owner: str, session_id: str, body: bytes, who: Who) -> Answer:
        """Forward a client's messages to its session. body: as for `decode_messages`.

        Raises BrokerUnavailable: they may have arrived or not.
        """
        await self.start()
        number = self._new_id()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._sends[number] = answer
        try:
            async with asyncio.timeout(SEND_TIMEOUT_S):
                words = number, self._node.node_id, session_id, body.decode(), who.words()
                if not await self._tell(owner, "send", *words):
                    return 404, ""
                return await answer
        except TimeoutError:
            raise BrokerUnavailable("sockjs") from None
        finally:
            del self._sends[number]

    def release_all(self) -> None:
        """Request a regular end of all receivers of this node; later ones end at once."""
        self._is_stopping = True
        for number, forwarded in self._forwarded.items():
            self._tell(forwarded.owner, "release", number)

    def _acknowledge(self, owner: str, number: str, size: int) -> None:
        forwarded = self._forwarded.get(number)
        if forwarded is not None and not forwarded.is_ended:
            self._tell(owner, "ack", number, size)

    def _finish(self, number: str) -> None:
        forwarded = self._forwarded.pop(number, None)
        if forwarded is not None:
            self._tell(forwarded.owner, "finished", number)
            self._finished[number] = forwarded.owner, REPEATS

    def _drop(self, number: str) -> None:
        """Give up a receiver: its client or its session's node has gone."""
        forwarded = self._forwarded.pop(number, None)
        if forwarded is not None:
            self._tell(forwarded.owner, "gone", number)
            if not forwarded.is_ended:  # else the response is complete
                forwarded.stream.lose()
            if not forwarded.verdict.done():
                forwarded.verdict.set_result(None)

    def _on_attached(self, number: str, verdict: Verdict | None) -> None:
        forwarded = self._forwarded.get(number)
        if forwarded is not None and not forwarded.verdict.done():
            forwarded.verdict.set_result(verdict)

    def _on_part(self, number: str, place: int, text: str) -> None:
        forwarded = self._in_turn(number, place)
        if forwarded is not None:
            forwarded.parts.append(text)

    def _on_frame(self, number: str, place: int, text: str) -> None:
        forwarded = self._in_turn(number, place)
        if forwarded is not None and forwarded.stream.is_gone():
            self._drop(number)
        elif forwarded is not None:
            forwarded.stream.send("".join((*forwarded.parts, text)).encode())
            forwarded.parts.clear()

    def _on_end(self, number: str, place: int) -> None:
        forwarded = self._in_turn(number, place)
        if forwarded is not None:
            forwarded.is_ended = True
            forwarded.stream.end()

    def _in_turn(self, number: str, place: int) -> _Forwarded | None:
        forwarded = self._forwarded.get(number)
        if forwarded is None:
            return None
        if forwarded.expected != place:
            _log.warning("frames between nodes were lost")
            self._drop(number)
            return None
        forwarded.expected += 1
        return forwarded

    def _on_sent(self, number: str, status: int, text: str) -> None:
        answer = self._sends.get(number)
        if answer is not None and not answer.done():
            answer.set_result((status, text))

    def _on_asked(self, numbers: list[str], hearers: asyncio.Future[int]) -> None:
        give_up_unheard(numbers, self._forwarded, hearers, self._drop)

    def _on_known(self, numbers: list[str]) -> None:
        now_s = asyncio.get_running_loop().time()
        for number in numbers:
            if number in self._forwarded:
                self._forwarded[number].known_s = now_s

    # -- both ----------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        self._count += 1
        return f"{self._node.node_id}.{self._count}"

    def _tell(self, node_id: str, *words: Any) -> asyncio.Future[int]:
        return self._node.channels.publish(self._service, node_id, words)

    def _on_publications(self, publications: Sequence[Publication]) -> None:
        for publication in publications:
            try:
                words: Any = decode_json(publication.payload)
                self._handlers[words[0]](*words[1:])
            except Exception:  # an error with one message must not affect the others
                _log.exception("processing a message of another node failed")

    def _schedule(self) -> None:
        if self._timer is None and (self._forwarded or self._finished or self._session_owner.is_busy):
            self._timer = asyncio.get_running_loop().call_later(self._beat_s, self._tick)

    def _tick(self) -> None:
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        by_owner: defaultdict[str, list[str]] = defaultdict(list)
        for number, forwarded in tuple(self._forwarded.items()):
            if forwarded.stream.is_gone() or now_s - forwarded.known_s > LOST_S:
                self._drop(number)
            else:
                by_owner[forwarded.owner].append(number)
        finished: defaultdict[str, list[str]] = defaultdict(list)
        for number, (owner, count) in tuple(self._finished.items()):
            finished[owner].append(number)
            if count > 1:
                self._finished[number] = owner, count - 1
            else:
                del self._finished[number]
        for owner in {**by_owner, **finished}:
            numbers, done = by_owner.get(owner, []), finished.get(owner, [])
            for start in range(0, max(len(numbers), len(done)), ALIVE_MAX):
                some = numbers[start : start + ALIVE_MAX]
                asked = self._tell(owner, "alive", self._node.node_id, some, done[start : start + ALIVE_MAX])
                asked.add_done_callback(partial(self._on_asked, some))
        self._session_owner.tick(now_s)
        self._schedule()
