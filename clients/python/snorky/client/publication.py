"""Publications through Redis and the meaning of Redis' replies. Pure.

Rules:
- Every message is checked before any is sent: messages that a node would drop are rejected here.
- A reply decides the outcome, also after earlier attempts without one: the function gives the same reply to a key that
  it knows.
- Only an attempt that was sent and had no reply makes the outcome unknown. A refusal of a later attempt does not
  change that.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from snorky.client.canonical import channel_key
from snorky.client.errors import HistoryNotKept, PublishError
from snorky.client.position import Position
from snorky.client.receipt import Receipt
from snorky.client.strict import encode

__all__ = ["KEY_MAX_BYTES", "PAYLOAD_MAX_BYTES", "Publication", "Refusal", "Sending"]

PAYLOAD_MAX_BYTES: Final = 1_048_576  # the maximum of a gateway's /backend; larger messages get slow clients closed
KEY_MAX_BYTES: Final = 255

# First words of Redis' temporary errors; the command was not executed.
_UNAVAILABLE = (
    "LOADING",
    "BUSY",
    "READONLY",
    "OOM",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "TRYAGAIN",
    "NOREPLICAS",
    "MISCONF",
    "ASK",
)
_UNAUTHORIZED = ("NOPERM", "NOAUTH", "WRONGPASS")


@dataclass(frozen=True, slots=True)
class Publication:
    """A message to publish. key: None = a random one. require_history: an error if the channel keeps no history."""

    channel: Any
    message: Any
    key: str | None = None
    service: str = "pubsub"
    require_history: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """The meaning of a Redis error. is_passing: trying again may help. moved_to: in a Cluster, the right server.

    is_single: send each payload by a command of its own.
    """

    text: str
    code: str
    is_passing: bool
    moved_to: tuple[str, int] | None = None
    is_single: bool = False

    @classmethod
    def of(cls, text: str) -> "Refusal":
        """Classify an error by its text."""
        plain = "or publish with if_no_function='publish'"
        if "unction not found" in text:
            hint = f"start a node, which loads it, {plain}"
            return cls(f"Redis does not have the function snorky_publish: {hint}", "no_function", True)
        if "no node with this prefix" in text:
            hint = f"nodes write them again within 2 s after a FLUSHALL; if none runs, start one, {plain}"
            return cls(
                f"Redis has no channel rules of nodes with this prefix and database: {hint}", "no_function", True
            )
        if text.startswith("unknown command") or "ERR unknown command" in text:
            return cls("Redis is older than 7.0 and has no functions", "no_function", False)
        if text.startswith(_UNAUTHORIZED) or "cannot read the channel rules" in text:
            return cls(f"Redis refuses: {text}", "unauthorized", False)
        if text.startswith(_UNAVAILABLE):
            return cls(f"Redis cannot store it now: {text}", "unavailable", True)
        return cls(f"Redis refuses: {text}", "refused", False)

    def of_several(self) -> "Refusal":
        """Return what it means for a call with several payloads: each alone may be accepted.

        Only one payload may be to blame, or an earlier version's function takes only one.
        """
        return replace(self, is_passing=True, is_single=True) if self.code == "refused" else self


_NOT_KEPT: Final = Refusal(
    "It was published, but the channel keeps no history: set `history` in its rule on the nodes; if it is set, run "
    "`snorky check`, which compares the function library",
    "not_kept",
    False,
)


class Sending:
    """The state of one publication over its attempts. Raises ValueError, TypeError: a node would not accept it."""

    def __init__(self, message: Publication, prefix: str) -> None:
        self.channel_key = channel_key(message.service, message.channel)
        self.name = f"{prefix}:{{{self.channel_key}}}"
        self._roster = f"{prefix}:nodes{{{self.channel_key}}}:roster"
        self.payload = encode(message.message)
        if len(self.payload) > PAYLOAD_MAX_BYTES:
            raise ValueError(f"message: more than {PAYLOAD_MAX_BYTES} bytes")
        self.key = secrets.token_hex(16) if message.key is None else message.key
        if not 0 < len(self.key.encode()) <= KEY_MAX_BYTES:
            raise ValueError(f"key: 1 to {KEY_MAX_BYTES} bytes")
        self.requires_history = message.require_history
        self.receipt: Receipt | None = None
        self.refusal: Refusal | None = None  # of the last attempt
        self.is_sharded = False  # sent to a Redis Cluster
        self.is_plain = False  # sent by PUBLISH, without the function
        self.is_single = False  # a call with several was refused
        self.is_unknown = False  # an attempt was sent and had no valid reply

    @property
    def is_alone(self) -> bool:
        """True if it needs a command of its own."""
        return self.is_plain or self.is_single

    def command(self) -> tuple[str | bytes, ...]:
        """Return the command that publishes it alone; further payloads and keys may follow."""
        if self.is_plain:
            return ("SPUBLISH" if self.is_sharded else "PUBLISH", self.name, self.payload)
        return ("FCALL", "snorky_publish", "1", self.name, self.payload, self.key)

    def count_commands(self) -> tuple[tuple[str, ...], ...]:
        """Return the commands that count the channel's subscribers: nodes, and members of its roster."""
        return ("PUBSUB", "SHARDNUMSUB" if self.is_sharded else "NUMSUB", self.name), ("HLEN", self._roster)

    def begin(self) -> None:
        """Start an attempt."""
        self.refusal = None

    @property
    def is_answered(self) -> bool:
        """True if Redis replied to the attempt, also by an error."""
        return self.receipt is not None or self.refusal is not None

    def take(self, reply: object, counted: Sequence[object] = ()) -> None:
        """Record Redis' reply to the last attempt. counted: its replies to `count_commands`."""
        nodes, connections = _counts(*counted) if counted else (None, None)
        if self.is_plain and isinstance(reply, int):
            self.receipt = Receipt(self.key, None, nodes, connections)
        elif isinstance(reply, bytes) and not self.is_plain:
            try:
                position = Position.parse(reply.decode("ascii")) if reply else None
            except ValueError:
                self.refusal = Refusal("Redis replied with an invalid position", "invalid_reply", False)
                self.is_unknown = True
            else:
                if position is None and self.requires_history:
                    self.refusal = _NOT_KEPT
                    self.is_unknown = True
                else:
                    self.receipt = Receipt(self.key, position, nodes, connections)
        else:
            self.refusal = Refusal(f"Redis replied with {type(reply).__name__}", "invalid_reply", False)
            self.is_unknown = True

    def refuse(self, refusal: Refusal) -> None:
        """Record that the last attempt was refused and had no effect."""
        self.refusal = refusal
        self.is_single |= refusal.is_single

    def lose(self, text: str, *, was_sent: bool, is_final: bool = False) -> None:
        """Record that the last attempt had no reply. is_final: no other server can be tried.

        If the outcome of an earlier attempt is unknown, it is tried again even so: only a reply can decide it.
        """
        self.is_unknown |= was_sent
        code = "no_reply" if was_sent else "unreachable"
        text = f"No reply from Redis: {text}" if was_sent else f"Redis cannot be reached: {text}"
        is_passing = (not is_final or self.is_unknown) and not (self.is_plain and was_sent)  # PUBLISH has no keys
        self.refusal = Refusal(text, code, is_passing)

    def error(self) -> PublishError:
        """Return the error that explains why there is no receipt."""
        refusal = self.refusal or Refusal("Not in time", "unreachable", True)
        kind = HistoryNotKept if refusal is _NOT_KEPT else PublishError
        return kind(refusal.text, refusal.code, may_have_happened=self.is_unknown, key=self.key)


def _counts(told: object, members: object) -> tuple[int | None, int | None]:
    """Return how many nodes and connections subscribe to a channel; None = unknown."""
    nodes = told[1] if isinstance(told, list) and len(told) == 2 and isinstance(told[1], int) else None
    if not isinstance(members, int) or (members == 0 and nodes != 0):  # 0: no subscriber, or no presence
        return nodes, None
    return nodes, members
