"""Topic: one channel that a client subscribes to, across connections. Delivers its events in order. Pure.

Rules:
- One line (connection) is the topic's owner and delivers; messages from other lines are dropped or buffered. After
  `subscribe` was sent on a line, its messages are buffered until the reply, because live messages may arrive before it.
- With positions, the message with offset last+1 is delivered; one at or below last is a duplicate and is dropped; a
  higher one means that messages are missing, and the topic subscribes again from the last position. Another epoch, or a
  `gap` notice of the node, is reported as Gap, and delivery continues from there.
- Without positions missing messages cannot be detected; after a move contents are compared (overlap).
- Unread events are bounded. With positions, a full topic is parked: it unsubscribes until there is room. Without
  positions, messages are dropped and a Gap reports it.
- A parked topic reads history page by page while there is room, and subscribes again when it has caught up. So does a
  topic that missed more than the reply to `subscribe` can contain.
- A parked topic with a token, or of a server-side subscription, stays subscribed, because it may read history only
  meanwhile. It drops what arrives.
- A server-side subscription is one that the backend has begun. Its topic begins with the notification `subscribed`. On
  later lines it asks for it as for any other, with `serverSide`, and never unsubscribes to subscribe again.
"""

from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, Literal

from snorky.client.canonical import channel_name
from snorky.client.position import Position
from snorky.client.realtime.channel_token import ChannelToken
from snorky.client.realtime.events import Event, Gap, Message, Recovered
from snorky.client.realtime.overlap import Overlap
from snorky.client.strict import encode

if TYPE_CHECKING:
    from snorky.client.realtime.line import Line

__all__ = ["Answer", "Topic", "topic_key"]

Notification = dict[str, Any]
HELD_MAX: Final = 10_000  # messages buffered until a reply arrives or a move ends


def topic_key(service: str, channel: Any) -> tuple[str, str]:
    """Return a key that is equal for equal channels. Raises ValueError, TypeError: channel or service is not valid."""
    if not isinstance(service, str):
        raise TypeError("service: write its name as a string")
    encode(service)  # a lone surrogate
    return service, channel_name(channel)


class Answer(Enum):
    """What to do after a reply to `subscribe`."""

    WHOLE = "nothing"
    HOLE = "to ask again, from the last position"
    FAR = "to read history first: more was missed than an answer brings"


class Topic:
    """One subscription. recover: True = from now on, a position = from there on, False = without positions.

    token: where its subscription tokens come from; None = it needs none. is_server_side: the backend has begun it.
    """

    def __init__(
        self,
        service: str,
        channel: Any,
        *,
        recover: bool | str = False,
        token: ChannelToken | None = None,
        is_server_side: bool = False,
        events_max: int = 1_000,
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        self.service = service
        self.channel = channel
        self.key = topic_key(service, channel)
        self.token = token
        self.is_server_side = is_server_side
        self.is_recovering = recover is not False
        self.position: Position | None = Position.parse(recover) if isinstance(recover, str) else None
        self.state: Literal["wished", "confirmed", "refused", "closed"] = "wished"
        self.error: Exception | None = None
        self.events: deque[Event] = deque()
        self.is_parked = False  # unsubscribed until it has caught up by reading history
        self.duplicates = 0
        self.interruptions = 0  # how often the gateway has ended its subscription
        self._events_max = events_max
        self._on_change = on_change
        self._owner: Line | None = None
        self._held: dict[Line, list[Notification]] = {}  # by line: until its reply, or until it becomes the owner
        self._ready: set[Line] = set()  # lines that have replied and wait to become the owner
        self._was_lost = False  # its line has ended, so messages may be missing
        self._is_gone = False  # history no longer has all messages after the last position
        self._overlap: Overlap | None = None
        self._is_dropping = False

    # -- calls of the session ------------------------------------------------------------------------------------

    def is_on(self, line: "Line") -> bool:
        """True if the line is subscribed to the channel or has asked to be."""
        return self._owner is line or line in self._held

    @property
    def stays_parked(self) -> bool:
        """True if it stays subscribed while it is parked."""
        return self.token is not None or self.is_server_side

    def request(self, line: "Line", token: str | None = None) -> dict[str, Any]:
        """Return the parameters of `subscribe`; the line's messages are buffered until `answer`."""
        self._held[line] = []
        if self._owner is not None:
            self._overlap = Overlap()
        params: dict[str, Any] = {"channel": self.channel}
        if token is not None:
            params["token"] = token
        if self.is_server_side:
            params["serverSide"] = True
        if self.is_recovering and not self.is_parked:
            params["recover"] = True if self.position is None else str(self.position)
        return params

    def answer(self, line: "Line", data: Any, *, is_alone: bool) -> Answer:
        """Handle a line's reply to `subscribe`. is_alone: no other line delivers the topic now."""
        fields = data if isinstance(data, dict) else {}
        position = _position(fields.get("position"))
        self.state = "confirmed"
        if self._owner is not None and self._owner.number > line.number:
            self.leave(line)  # both lines subscribed during a move, and the newer one replied first
            return Answer.WHOLE
        if (
            position is not None
            and fields.get("recovered") is not True
            and not (self._is_gone or self.position is None)
        ):
            self._on_change()
            return Answer.FAR
        is_return, self._was_lost = self._was_lost and self._owner is None, False
        is_whole = True
        if position is not None:
            self._ready.discard(line)
            self._owner = line
            held = self._held.pop(line, [])
            self._recover(fields, position, is_return)
            is_whole = all([self._take(notification, is_held=True) for notification in held])
        else:
            if is_return or self.position is not None:
                self._tell(Recovered(self.channel, is_recovered=False))
            self.position = None
            self._ready.add(line)
            if is_alone or self._owner is None:
                self.adopt(line)
        self._on_change()
        return Answer.WHOLE if is_whole else Answer.HOLE

    def page(self, data: Any) -> bool:
        """Deliver a page of history. True: there may be more. False: subscribe again, which delivers the rest."""
        fields = data if isinstance(data, dict) else {}
        messages = fields.get("messages")
        if fields.get("recovered") is not True or not isinstance(messages, list):
            self._is_gone = True
            return False
        if self._was_lost and messages:
            self._was_lost = False
            self._tell(Recovered(self.channel, is_recovered=True, position=fields.get("position")))
        before = self.position
        for message in messages:
            if isinstance(message, dict):
                self._take(message, is_replayed=True)
        self._on_change()
        return self.position != before and str(self.position) != fields.get("position")

    def refuse_history(self) -> None:
        """Record that history cannot be read."""
        self._is_gone = True

    def adopt(self, line: "Line") -> None:
        """Make a line that is ready the owner, and deliver its buffered messages."""
        if line not in self._ready:
            return
        self._ready.discard(line)
        self._owner = line
        for notification in self._held.pop(line, []):
            self._take(notification, is_held=True)
        self._on_change()

    def notify(self, line: "Line", notification: Notification) -> bool:
        """Handle a notification. False: messages are missing, the topic must subscribe again."""
        held = self._held.get(line)
        if held is not None:
            held.append(notification)
            if len(held) > HELD_MAX:
                line.abandon("held too much")
            return True
        if self._owner is not line or self.is_parked:
            return True
        is_whole = self._take(notification)
        self._on_change()
        return is_whole

    def lose(self, line: "Line") -> None:
        """Handle the end of a line."""
        if self._owner is line:
            self._was_lost = True
        self.leave(line)

    def interrupt(self, line: "Line") -> None:
        """Handle the end of the subscription on a line that stays open. Without positions messages may be missing."""
        was_owner = self._owner is line
        self.interruptions += 1
        self.leave(line)
        if was_owner and self._ready:
            self.adopt(max(self._ready, key=lambda each: each.number))
        elif was_owner and self.position is None:
            self._was_lost = True

    def stay(self, line: "Line") -> None:
        """Keep a line subscribed while the topic is parked. What arrived on it is in the history too."""
        self.leave(line)
        self._owner = line

    def leave(self, line: "Line") -> None:
        """Forget a line that is no longer subscribed to the channel."""
        self._held.pop(line, None)
        self._ready.discard(line)
        if self._owner is line:
            self._owner = None

    def end_overlap(self) -> None:
        """Stop comparing messages with those of the previous line, which has ended."""
        self._overlap = None

    def refuse(self, error: Exception) -> None:
        """End the topic because the server refused it."""
        self.state, self.error = "refused", error
        self._on_change()

    def close(self, error: Exception | None = None) -> None:
        """End the topic. error: why, if the program did not ask for it."""
        if self.state == "closed":
            return
        self.state, self.error = "closed", error
        self._on_change()

    # -- room for events -----------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        """True if there are as many unread events as allowed."""
        return len(self.events) >= self._events_max

    @property
    def has_room(self) -> bool:
        """True if a topic that was full can deliver again: at most half of the allowed events are unread."""
        return len(self.events) <= self._events_max // 2

    # -- positions -----------------------------------------------------------------------------------------------

    def _recover(self, fields: dict[str, Any], position: Position, is_return: bool) -> None:
        self._is_gone = False
        if fields.get("recovered") is not True:
            self._tell(Recovered(self.channel, is_recovered=False, position=str(position)))
            self.position = position
            return
        if is_return:
            self._tell(Recovered(self.channel, is_recovered=True, position=str(position)))
        for message in fields.get("messages") or ():
            if isinstance(message, dict):
                self._take(message, is_replayed=True)
        last = self.position
        if last is None or last.epoch != position.epoch or last.offset < position.offset:
            self.position = position

    def _take(self, notification: Notification, *, is_held: bool = False, is_replayed: bool = False) -> bool:
        if notification.get("type") == "gap":
            self._take_gap(notification, is_held=is_held)
            return True
        position = _position(notification.get("position")) if self.is_recovering else None
        if position is None:
            self._take_bare(notification)
            return True
        last = self.position
        if last is not None:
            if last.epoch != position.epoch:  # normally the node's `gap` notice comes first
                self._tell(Gap(self.channel, str(position)))
            elif position.offset <= last.offset:
                self.duplicates += 1
                return True
            elif position.offset > last.offset + 1 and not is_replayed:
                return False
        self.position = position
        data, is_tombstone = notification.get("message"), notification.get("tombstone") is True
        self._tell(Message(self.channel, data, position.offset, str(position), is_tombstone))
        return True

    def _take_gap(self, notification: Notification, *, is_held: bool) -> None:
        text = notification.get("position")
        position, last = _position(text), self.position
        if is_held and position is not None and last is not None:
            if position.epoch == last.epoch and position.offset <= last.offset:
                return  # the reply, which is newer, has recovered from it
        self.position = position
        self._tell(Gap(self.channel, text if isinstance(text, str) else None))

    def _take_bare(self, notification: Notification) -> None:
        data = notification.get("message")
        if self._overlap is not None:
            if self._held:
                self._overlap.note(data)
            elif self._overlap.is_repetition(data):
                self.duplicates += 1
                return
        self._tell(Message(self.channel, data))

    def _tell(self, event: Event) -> None:
        if not self.is_recovering and self.is_full:
            if not self._is_dropping:
                self.events.append(Gap(self.channel, is_overflow=True))
            self._is_dropping = True
            return
        self._is_dropping = False
        self.events.append(event)


def _position(text: object) -> Position | None:
    if not isinstance(text, str):
        return None
    try:
        return Position.parse(text)
    except ValueError:
        return None
