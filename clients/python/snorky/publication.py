"""What is published, what came of it, and what Redis' answers mean. Pure.

Rules:
- Everything is checked before anything is sent: what a node would drop is refused here.
- A reply settles a publication, whatever was lost before it: the function answers a key that it knows as it
  answered the first time.
- Only "no answer, though it was sent" leaves the outcome unknown; a refusal of a later attempt does not clear that.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from snorky.canonical import channel_key
from snorky.errors import HistoryNotKept, PublishError
from snorky.position import Position
from snorky.strict import encode

__all__ = ["KEY_MAX_BYTES", "PAYLOAD_MAX_BYTES", "Publication", "Receipt", "Refusal", "Sending"]

PAYLOAD_MAX_BYTES: Final = 1_048_576  # what a gateway's /backend takes; beyond it, it ends slow clients
KEY_MAX_BYTES: Final = 255

# How Redis begins an error that another moment may not have; nothing was done then.
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
    """One of many to publish. key: None = one is made. require_history: an error if the channel does not keep it."""

    channel: Any
    message: Any
    key: str | None = None
    service: str = "pubsub"
    require_history: bool = False


@dataclass(frozen=True, slots=True)
class Receipt:
    """What came of a publication that Redis has taken.

    position: None = the channel keeps no history. nodes, connections: how many heard the channel, None = not asked, or
    not to be known: nodes tell of their connections where the channel's rule has `presence`. key: under which it was
    published.
    """

    key: str
    position: Position | None = None
    nodes: int | None = None
    connections: int | None = None


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an error of Redis means. is_passing: trying again may help. moved_to: who has it, in a Cluster."""

    text: str
    code: str
    is_passing: bool
    moved_to: tuple[str, int] | None = None

    @classmethod
    def of(cls, text: str) -> "Refusal":
        """Read an error's text."""
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
            return cls(f"Redis cannot take it now: {text}", "unavailable", True)
        return cls(f"Redis refuses: {text}", "refused", False)


_NOT_KEPT: Final = Refusal(
    "It was published, and the channel keeps no history: give its rule `history` on the nodes; if it has one, see what "
    "`snorky check` says of the function library",
    "not_kept",
    False,
)


class Sending:
    """One publication on its way. Raises ValueError, TypeError: a node would not take it."""

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
        self.is_sharded = False  # it goes to a Redis Cluster
        self.is_plain = False  # by PUBLISH, without the function
        self.is_unknown = False  # an attempt went out, and no answer came

    def command(self) -> tuple[str | bytes, ...]:
        """What to send to Redis."""
        if self.is_plain:
            return ("SPUBLISH" if self.is_sharded else "PUBLISH", self.name, self.payload)
        return ("FCALL", "snorky_publish", "1", self.name, self.payload, self.key)

    def count_commands(self) -> tuple[tuple[str, ...], ...]:
        """What to ask Redis for who hears the channel: the nodes, and the members of its roster."""
        return ("PUBSUB", "SHARDNUMSUB" if self.is_sharded else "NUMSUB", self.name), ("HLEN", self._roster)

    def begin(self) -> None:
        """Know that an attempt begins."""
        self.refusal = None

    @property
    def is_answered(self) -> bool:
        """True if Redis answered the attempt, whatever it said."""
        return self.receipt is not None or self.refusal is not None

    def take(self, reply: object, counted: Sequence[object] = ()) -> None:
        """Know Redis' answer to the last attempt. counted: its answers to `count_commands`."""
        nodes, connections = _counts(*counted) if counted else (None, None)
        if self.is_plain and isinstance(reply, int):
            self.receipt = Receipt(self.key, None, nodes, connections)
        elif isinstance(reply, bytes) and not self.is_plain:
            try:
                position = Position.parse(reply.decode("ascii")) if reply else None
            except ValueError:
                self.refusal = Refusal("Redis answers what is no position", "invalid_reply", False)
                self.is_unknown = True
            else:
                if position is None and self.requires_history:
                    self.refusal = _NOT_KEPT
                    self.is_unknown = True
                else:
                    self.receipt = Receipt(self.key, position, nodes, connections)
        else:
            self.refusal = Refusal(f"Redis answers {type(reply).__name__}", "invalid_reply", False)
            self.is_unknown = True

    def refuse(self, refusal: Refusal) -> None:
        """Know that the last attempt did nothing."""
        self.refusal = refusal

    def lose(self, text: str, *, was_sent: bool, is_final: bool = False) -> None:
        """Record that the last attempt had no answer. is_final: no server is left to try again.

        What an earlier attempt left open is tried again all the same: only an answer can settle it.
        """
        self.is_unknown |= was_sent
        code = "no_reply" if was_sent else "unreachable"
        text = f"No reply of Redis: {text}" if was_sent else f"Redis cannot be reached: {text}"
        is_passing = (not is_final or self.is_unknown) and not (self.is_plain and was_sent)  # PUBLISH knows no keys
        self.refusal = Refusal(text, code, is_passing)

    def error(self) -> PublishError:
        """Say why there is no receipt."""
        refusal = self.refusal or Refusal("Not in time", "unreachable", True)
        kind = HistoryNotKept if refusal is _NOT_KEPT else PublishError
        return kind(refusal.text, refusal.code, may_have_happened=self.is_unknown, key=self.key)


def _counts(told: object, members: object) -> tuple[int | None, int | None]:
    """Read how many nodes and connections hear a channel."""
    nodes = told[1] if isinstance(told, list) and len(told) == 2 and isinstance(told[1], int) else None
    if not isinstance(members, int) or (members == 0 and nodes != 0):  # 0: nobody, or no presence
        return nodes, None
    return nodes, members
