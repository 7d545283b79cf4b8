"""Publications as they travel through Redis: bytes <-> what they say. Pure.

    bare        the payload, JSON: what any Redis client publishes
    sequenced   0xC1 `1 EPOCH:OFFSET:TAG PREVIOUS_TAG j` newline payload: it has a position in its channel's history;
                `m` instead of `j`: the payload is MessagePack
    addressed   0xC1 `2 j SELECTOR` newline payload: for some of the subscribers only
    change      0xC1 `3 VERSION PREVIOUS_VERSION j CHANGE` newline, and behind it a bare or an addressed one: it tells
                of an entry of the channel's roster that came, went, or has other data

    hint        0xC1 `h EPOCH:OFFSET:TAG PREVIOUS_TAG j` newline payload: what a publisher says of a position

0xC1 is never first in JSON or MessagePack. SELECTOR is a JSON object without blanks: `only` an identity, `not` a
connection's id, `not_identity` an identity, `whole` that the payload is a whole message. VERSION grows with
each notice of a roster (PREVIOUS_VERSION 0: nothing had been told of it); CHANGE is a JSON list, see `Change`. An
unknown version is dropped by who reads it, and counted.

Only nodes may say what has a header, on Redis channels of their own. The function snorky_publish has but the rights of
whoever calls it, so it says positions where any publisher might: what is heard there becomes a hint, which nobody
believes before history says the same (`sequence.py`).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import msgspec

from gateway.codec import decode_json, decode_msgpack, encode_json
from gateway.errors import InvalidMessage

__all__ = [
    "MARK",
    "Change",
    "Position",
    "Publication",
    "Selector",
    "TooLarge",
    "UnknownVersion",
    "as_hint",
    "read_publication",
    "tombstone",
    "write_addressed",
    "write_change",
    "write_version",
]

MARK = b"\xc1"  # begins what has a header
_FIELDS = {"only", "not", "not_identity", "whole"}


class UnknownVersion(InvalidMessage):
    """A publication of a version that this node does not speak: of a newer one, say."""

    code = "unknown_version"


class TooLarge(InvalidMessage):
    """A publication with a larger payload than a node gives to clients."""

    code = "too_large"


@dataclass(frozen=True, slots=True)
class Position:
    """Where a publication stands: EPOCH:OFFSET:TAG. The tag is random per entry; see RELIABILITY of the docs."""

    epoch: str
    offset: int
    tag: str

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Read what `str` wrote. Raises ValueError."""
        epoch, offset, tag = text.split(":")
        if not (offset.isascii() and offset.isdigit() and epoch and tag):
            raise ValueError("not a position")
        return cls(epoch, int(offset), tag)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which subscribers get a publication. is_whole: as it is, not within the shape of the service's notifications."""

    only_identity: str | None = None
    not_identity: str | None = None
    not_connection: str | None = None
    is_whole: bool = False

    def selects(self, subscriber: "Subscriber") -> bool:
        """True if this subscriber gets it."""
        if self.only_identity is not None and subscriber.identity != self.only_identity:
            return False
        if self.not_identity is not None and subscriber.identity == self.not_identity:
            return False
        return self.not_connection is None or subscriber.id != self.not_connection


class Subscriber(Protocol):
    """Who can be selected: a connection."""

    identity: str | None

    @property
    def id(self) -> str:
        """Address in the cluster."""


@dataclass(frozen=True, slots=True)
class Change:
    """What became of one entry of a roster: it came, "+", went, "-", or has other data, "=".

    is_identity: it was its identity's first or last. connection_id, entry: which one, of whom. version, previous:
    of the roster with this change, and with the last one that was told before. data: what it carries now, if anything.
    """

    kind: Literal["+", "-", "="]
    is_identity: bool
    identity: str
    connection_id: str
    entry: str = ""
    version: int = 0
    previous: int = 0
    data: Any = None


@dataclass(frozen=True, slots=True)
class Publication:
    """One publication. payload: JSON, not yet checked. change: what it tells of, if that is a roster's.

    fault: why the payload was not fit for anybody; `null` stands in its place, a tombstone. "" = it is fit, or not
    checked yet.
    hint: the position that a publisher told; it is not the position.
    """

    payload: bytes
    position: Position | None = None
    previous_tag: str | None = None
    selector: Selector | None = None
    change: Change | None = None
    fault: Literal["", "invalid", "too_large"] = ""
    hint: Position | None = None

    @property
    def is_tombstone(self) -> bool:
        """True if the payload was not fit for anybody."""
        return bool(self.fault)


def read_publication(data: bytes) -> Publication:
    """Read what came from Redis. Raises UnknownVersion, InvalidMessage: a header that cannot be read."""
    if data[:1] != MARK:
        return Publication(data)
    version, rest, payload = _split(data)
    try:
        if version == b"1":
            return _read_sequenced(rest.decode("ascii"), payload)
        if version == b"2":
            return Publication(payload, selector=_read_selector(rest))
        if version == b"3":
            return _read_change(rest, payload)
        if version == b"h":
            told = _read_sequenced(rest.decode("ascii"), payload)
            return Publication(told.payload, hint=told.position)
    except (ValueError, IndexError):  # also no UTF-8, and fields that are missing
        raise InvalidMessage("Malformed header") from None
    raise UnknownVersion("Unknown version")


def as_hint(data: bytes) -> bytes | None:
    """Make a hint of a sequenced publication that anybody may have published; None = it is no sequenced one."""
    return b"%bh%b" % (MARK, data[2:]) if data[1:3] == b"1 " else None


def tombstone(publication: Publication, fault: Literal["invalid", "too_large"] = "invalid") -> Publication:
    """Put `null` in place of a payload that is not fit for anybody."""
    return replace(publication, payload=b"null", fault=fault)


def write_addressed(payload: bytes, selector: Selector) -> bytes:
    """Address a publication to some of a channel's subscribers."""
    fields = {"only": selector.only_identity, "not_identity": selector.not_identity, "not": selector.not_connection}
    chosen = {name: value for name, value in fields.items() if value is not None}
    if selector.is_whole:
        chosen["whole"] = "true"
    return MARK + b"2 j " + _encode(chosen) + b"\n" + payload


def write_change(notice: bytes, change: Change) -> bytes:
    """Say what a roster's notice tells of: all but the versions, which only who makes the change knows."""
    told = _Change(change.kind, change.is_identity, change.identity, change.connection_id, change.entry, change.data)
    return b"j " + _encode(told) + b"\n" + notice


def write_version(changed: bytes, version: int, previous: int) -> bytes:
    """Complete what `write_change` made. (In Redis the scripts do.)"""
    return MARK + b"3 %d %d " % (version, previous) + changed


def _from_msgpack(publication: Publication) -> Publication:
    try:
        return replace(publication, payload=encode_json(decode_msgpack(publication.payload)))
    except InvalidMessage:
        return tombstone(publication)


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Take a header apart: version, what is behind it, payload."""
    header, _, payload = data[1:].partition(b"\n")
    version, _, rest = header.partition(b" ")
    return version, rest, payload


def _read_sequenced(rest: str, payload: bytes) -> Publication:
    position, previous_tag, encoding = rest.split(" ")[:3]
    if encoding not in ("j", "m"):
        raise UnknownVersion("Unknown encoding")
    publication = Publication(payload, Position.parse(position), previous_tag)
    return publication if encoding == "j" else _from_msgpack(publication)


def _read_selector(rest: bytes) -> Selector:
    encoding, _, text = rest.partition(b" ")
    if encoding != b"j":
        raise UnknownVersion("Unknown encoding")
    try:
        told = _decode_selector(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _strict_selector(text)
    only, not_identity, not_connection = (
        None if each is msgspec.UNSET else each for each in (told.only, told.not_identity, told.not_)
    )
    return Selector(only, not_identity, not_connection, told.whole is not msgspec.UNSET)


def _strict_selector(text: bytes) -> Selector:
    """Read what is no ordinary one, or say what is wrong with it."""
    value = decode_json(text)
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise InvalidMessage("Malformed header")
    if not value.keys() <= _FIELDS:  # a newer node meant fewer subscribers than we would give it to
        raise UnknownVersion("Unknown selector")
    return Selector(value.get("only"), value.get("not_identity"), value.get("not"), "whole" in value)


# Of a node that dies ten thousand changes come at once, each with a selector: so these are read and written by types.


class _Selector(msgspec.Struct, forbid_unknown_fields=True, rename={"not_": "not"}):
    """What `write_addressed` writes."""

    only: str | msgspec.UnsetType = msgspec.UNSET  # a null would be somebody else's
    not_identity: str | msgspec.UnsetType = msgspec.UNSET
    not_: str | msgspec.UnsetType = msgspec.UNSET
    whole: str | msgspec.UnsetType = msgspec.UNSET


class _Change(msgspec.Struct, array_like=True):
    """What `write_change` writes."""

    kind: Literal["+", "-", "="]
    is_identity: bool
    identity: str
    connection_id: Annotated[str, msgspec.Meta(pattern=r"^.+\.[0-9]{1,18}\Z")]
    entry: str
    data: Any = None


_decode_selector = msgspec.json.Decoder(_Selector).decode
_decode_change = msgspec.json.Decoder(_Change).decode


def _encode(value: object) -> bytes:
    try:
        return msgspec.json.encode(value)
    except UnicodeEncodeError as error:
        raise InvalidMessage("Lone surrogate in a string") from error


def _read_change(rest: bytes, payload: bytes) -> Publication:
    version, previous, encoding, text = rest.split(b" ", 3)
    if encoding != b"j":
        raise UnknownVersion("Unknown encoding")
    selector = None
    if payload[:1] == MARK:
        inner, inner_rest, payload = _split(payload)
        if inner != b"2":
            raise InvalidMessage("Malformed header")  # nothing else is told of a roster
        selector = _read_selector(inner_rest)
    try:
        told = _decode_change(text)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidMessage("Malformed header") from None
    change = Change(
        told.kind,
        told.is_identity,
        told.identity,
        told.connection_id,
        told.entry,
        int(version),
        int(previous),
        told.data,
    )
    return Publication(payload, selector=selector, change=change)
