"""The format of publications in Redis, reading and writing. Pure.

    bare        the payload, JSON: what any Redis client publishes
    sequenced   0xC1 `1 EPOCH:OFFSET:TAG PREVIOUS_TAG j` newline payload: it has a position in its channel's history;
                `m` instead of `j`: the payload is MessagePack; ` =ATTRIBUTES` and ` SELECTOR` may follow
    addressed   0xC1 `2 j SELECTOR` newline payload: for some of the subscribers only
    described   0xC1 `2 j {"not":"=ATTRIBUTES"}` newline payload: for all subscribers, with attributes
    change      0xC1 `3 VERSION PREVIOUS_VERSION j CHANGE` newline, followed by a bare or an addressed one: an entry
                of the channel's roster has joined, left, or changed its data

    hint        0xC1 `h EPOCH:OFFSET:TAG PREVIOUS_TAG j` newline payload: a position that a publisher claims

0xC1 is never the first byte of JSON or MessagePack. SELECTOR is a JSON object without blanks: `only` an identity, `not`
a connection's id, `not_identity` an identity, `whole` if the payload is a whole message. VERSION grows with
each notice of a roster (PREVIOUS_VERSION 0: there was no notice before); CHANGE is a JSON list, see `Change`. Readers
drop publications of an unknown version, and count them. ATTRIBUTES: see `attributes.py`. Nodes of earlier versions
deliver a publication without them: they ignore further words of a sequenced one, and no connection has an id like that.

Only nodes may publish with a header, on Redis channels of their own. The function snorky_publish has only the rights of
its caller, so it publishes positions where any publisher could: a node treats such a position as a hint, and trusts
it only after it has read the same from history (`sequence.py`).
"""

from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Protocol

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import decode_json, decode_msgpack, encode_json

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
    "rest_of_header",
    "selector_text",
    "tombstone",
    "write_addressed",
    "write_change",
    "write_described",
    "write_version",
]

MARK = b"\xc1"  # first byte of publications with a header
_FIELDS = {"only", "not", "not_identity", "whole"}


class UnknownVersion(InvalidMessage):
    """A publication in a version of the format that this node does not know, perhaps of a newer node."""

    code = "unknown_version"


class TooLarge(InvalidMessage):
    """A publication whose payload is larger than a node delivers to clients."""

    code = "too_large"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in a channel's history: EPOCH:OFFSET:TAG. The tag is random per entry; see RELIABILITY in the docs."""

    epoch: str
    offset: int
    tag: str

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> "Position":
        """Parse the result of `str`. Raises ValueError."""
        epoch, offset, tag = text.split(":")
        if not (offset.isascii() and offset.isdigit() and epoch and tag):
            raise ValueError("not a position")
        return cls(epoch, int(offset), tag)


@dataclass(frozen=True, slots=True)
class Selector:
    """Which subscribers receive a publication. is_whole: send it as it is, not inside the service's notification."""

    only_identity: str | None = None
    not_identity: str | None = None
    not_connection: str | None = None
    is_whole: bool = False

    @classmethod
    def none(cls) -> "Selector":
        """Return the selector of a change that only clients of some foreign protocols get: no identity is empty."""
        return cls(only_identity="", is_whole=True)

    def selects(self, subscriber: "Subscriber") -> bool:
        """True if this subscriber receives it."""
        if self.only_identity is not None and subscriber.identity != self.only_identity:
            return False
        if self.not_identity is not None and subscriber.identity == self.not_identity:
            return False
        return self.not_connection is None or subscriber.id != self.not_connection


class Subscriber(Protocol):
    """The part of a connection that a selector uses."""

    identity: str | None

    @property
    def id(self) -> str:
        """Address in the cluster."""


@dataclass(frozen=True, slots=True)
class Change:
    """A change of one roster entry: "+" it joined, "-" it left, "=" its data changed.

    is_identity: the identity's first or last entry. connection_id, entry: identify the entry. version, previous:
    of the roster after this change, and after the last change published before it. data: of the entry, if
    any; of one that left, its last, unless it is large.
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
    """One publication. payload: JSON, not yet checked. change: the roster change that it reports, if any.

    fault: why the payload cannot be delivered; it is `null` then, a tombstone. "" = deliverable, or not checked yet.
    hint: the position that a publisher claimed; not verified. attributes: as written; b"" = it has none.
    """

    payload: bytes
    position: Position | None = None
    previous_tag: str | None = None
    selector: Selector | None = None
    change: Change | None = None
    fault: Literal["", "invalid", "too_large"] = ""
    hint: Position | None = None
    attributes: bytes = b""

    @property
    def size(self) -> int:
        """The bytes that it counts for."""
        return len(self.payload) + len(self.attributes)

    @property
    def is_tombstone(self) -> bool:
        """True if the payload cannot be delivered."""
        return bool(self.fault)


def read_publication(data: bytes) -> Publication:
    """Parse a publication from Redis. Raises UnknownVersion; InvalidMessage: a malformed header."""
    if data[:1] != MARK:
        return Publication(data)
    version, rest, payload = _split(data)
    try:
        if version == b"1":
            return _read_sequenced(rest, payload)
        if version == b"2":
            return _read_addressed(rest, payload)
        if version == b"3":
            return _read_change(rest, payload)
        if version == b"h":
            decoded = _read_sequenced(rest, payload)
            return Publication(decoded.payload, hint=decoded.position)
    except (ValueError, IndexError):  # includes invalid UTF-8 and missing fields
        raise InvalidMessage("Malformed header") from None
    raise UnknownVersion("Unknown version")


def as_hint(data: bytes) -> bytes | None:
    """Convert a sequenced publication of an untrusted publisher to a hint; None = it is not a sequenced one."""
    return b"%bh%b" % (MARK, data[2:]) if data[1:3] == b"1 " else None


def tombstone(publication: Publication, fault: Literal["invalid", "too_large"] = "invalid") -> Publication:
    """Replace a payload that cannot be delivered by `null`."""
    return replace(publication, payload=b"null", fault=fault)


def write_addressed(payload: bytes, selector: Selector) -> bytes:
    """Address a publication to some of a channel's subscribers."""
    return MARK + b"2 j " + selector_text(selector) + b"\n" + payload


def write_described(payload: bytes, attributes: bytes) -> bytes:
    """Add attributes to a publication for all subscribers of a channel without a history."""
    return MARK + b"2 j " + _encode({"not": f"={attributes.decode()}"}) + b"\n" + payload


def rest_of_header(attributes: bytes, to: Selector | None) -> bytes:
    """Write what follows the encoding in the header of a sequenced publication. to: for these subscribers only."""
    described = b" =" + attributes if attributes else b""
    return described if to is None else described + b" " + selector_text(to)


def selector_text(selector: Selector) -> bytes:
    """Write a selector for a header."""
    fields = {"only": selector.only_identity, "not_identity": selector.not_identity, "not": selector.not_connection}
    chosen = {name: value for name, value in fields.items() if value is not None}
    if selector.is_whole:
        chosen["whole"] = "true"
    return _encode(chosen)


def write_change(notice: bytes, change: Change) -> bytes:
    """Prepend to a notice the change that it reports, without the versions, which are known only to `write_version`."""
    fields = _Change(change.kind, change.is_identity, change.identity, change.connection_id, change.entry, change.data)
    return b"j " + _encode(fields) + b"\n" + notice


def write_version(changed: bytes, version: int, previous: int) -> bytes:
    """Complete the result of `write_change`. (In Redis, the scripts do it.)"""
    return MARK + b"3 %d %d " % (version, previous) + changed


def _from_msgpack(publication: Publication) -> Publication:
    try:
        return replace(publication, payload=encode_json(decode_msgpack(publication.payload)))
    except InvalidMessage:
        return tombstone(publication)


def _split(data: bytes) -> tuple[bytes, bytes, bytes]:
    """Split into version, rest of the header, payload."""
    header, _, payload = data[1:].partition(b"\n")
    version, _, rest = header.partition(b" ")
    return version, rest, payload


def _read_sequenced(rest: bytes, payload: bytes) -> Publication:
    fields, is_addressed, selector = rest.partition(b" {")
    words = fields.decode("ascii").split(" ")
    position, previous_tag, encoding = words[:3]
    if encoding not in ("j", "m"):
        raise UnknownVersion("Unknown encoding")
    publication = Publication(payload, Position.parse(position), previous_tag)
    if len(words) > 3 and words[3][:1] == "=":
        publication = replace(publication, attributes=words[3][1:].encode())
    if is_addressed:
        publication = replace(publication, selector=_selector(b"{" + selector))
    return publication if encoding == "j" else _from_msgpack(publication)


def _read_addressed(rest: bytes, payload: bytes) -> Publication:
    selector = _read_selector(rest)
    if selector.not_connection is not None and selector.not_connection[:1] == "=":
        return Publication(payload, attributes=selector.not_connection[1:].encode())
    return Publication(payload, selector=selector)


def _read_selector(rest: bytes) -> Selector:
    encoding, _, text = rest.partition(b" ")
    if encoding != b"j":
        raise UnknownVersion("Unknown encoding")
    return _selector(text)


def _selector(text: bytes) -> Selector:
    try:
        decoded = _decode_selector(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return _strict_selector(text)
    only, not_identity, not_connection = (
        None if each is msgspec.UNSET else each for each in (decoded.only, decoded.not_identity, decoded.not_)
    )
    return Selector(only, not_identity, not_connection, decoded.whole is not msgspec.UNSET)


def _strict_selector(text: bytes) -> Selector:
    """Parse a selector with unusual content, or raise the error that describes the problem."""
    value = decode_json(text)
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise InvalidMessage("Malformed header")
    if not value.keys() <= _FIELDS:  # a newer node meant fewer subscribers than this node would select
        raise UnknownVersion("Unknown selector")
    return Selector(value.get("only"), value.get("not_identity"), value.get("not"), "whole" in value)


# When a node dies, ten thousand changes come at once, each with a selector: typed structs make reading them fast.


class _Selector(msgspec.Struct, forbid_unknown_fields=True, rename={"not_": "not"}):
    """The format of `write_addressed`."""

    only: str | msgspec.UnsetType = msgspec.UNSET  # not None: a null would be invalid
    not_identity: str | msgspec.UnsetType = msgspec.UNSET
    not_: str | msgspec.UnsetType = msgspec.UNSET
    whole: str | msgspec.UnsetType = msgspec.UNSET


class _Change(msgspec.Struct, array_like=True):
    """The format of `write_change`."""

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
            raise InvalidMessage("Malformed header")  # a notice has no other form
        selector = _read_selector(inner_rest)
    try:
        decoded = _decode_change(text)
    except (msgspec.MsgspecError, RecursionError):
        raise InvalidMessage("Malformed header") from None
    change = Change(
        decoded.kind,
        decoded.is_identity,
        decoded.identity,
        decoded.connection_id,
        decoded.entry,
        int(version),
        int(previous),
        decoded.data,
    )
    return Publication(payload, selector=selector, change=change)
