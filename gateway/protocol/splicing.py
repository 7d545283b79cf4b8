"""Messages into which encoded and checked payloads are inserted as bytes. Pure.

    template = Template("pubsub", {"type": "message", "message": PAYLOAD})      # one message to many subscribers
    template.render(payload, encoding)

    compound = Compound()                                                       # one message with many payloads
    compound.value = {"messages": [{"message": compound.enclose(payload)} for payload in payloads]}

    names = Shared(["alice", "bob"])             # encoded once for all replies
    compound.value = compound.share(names)

    compound.follow(channel, self.notification(channel), publications)    # sent after it, as live notifications

Rules:
- A message is encoded with a mark in each place, and cut there. The marks are random, so whatever a client or a service
  writes into the message cannot contain one.
- Each payload is within the limits of a message; many together may exceed them, or nest deeper. So payloads are
  inserted as bytes, after the checks of the surrounding message.
- Following notifications are written together with the message, so nothing comes in between; but as separate
  messages, so a client with a slow connection receives the first of them long before the last.
"""

import secrets
from collections.abc import Sequence
from enum import Enum
from functools import lru_cache
from typing import Any, Final, cast

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import MAX_DEPTH, Encoding, Json, decode_json, encode, encode_msgpack
from snorky.gateway.protocol.foreign import Rendering
from snorky.gateway.protocol.publication import Publication

__all__ = ["PAYLOAD", "Compound", "Payload", "Shared", "Template"]


class Payload(Enum):
    """The type of PAYLOAD, for annotations: `Json | Payload`."""

    PAYLOAD = "payload"


PAYLOAD: Final = Payload.PAYLOAD  # marks the place of the payload in a Template

_JSON = Encoding.JSON  # reading an Enum's attribute is slower than a global, and each render does it
_PLACE = {"offset", "position", "tombstone"}  # keys that the form with a position adds
_DIGITS: Final = 8  # of a mark's number
_IN_ORDER: Final = [b"00000000", b"00000001", b"00000002"]  # the numbers of a template's marks

VALUES_MAX = 16 << 20  # of a shared value: no node decodes it, and its bytes are limited when written


class _Marks:
    """Numbered places in one message."""

    __slots__ = ("_mark",)

    def __init__(self) -> None:
        self._mark = secrets.token_hex(16)  # 128 random bits: cannot occur elsewhere in the message

    def at(self, number: int) -> str:
        """Return the string to write in place number `number`."""
        return f"{self._mark}{number:08d}"

    def cut(self, message: Json, encoding: Encoding) -> tuple[bytes, list[bytes], int]:
        """Encode a message; return the bytes before its first mark, and what follows each mark: digits and bytes.

        The last value tells where the bytes of the message go on after the digits. Raises InvalidMessage.
        """
        before, _, after = encode(self.at(0), encoding).rpartition(b"0" * _DIGITS)
        first, *others = encode(message, encoding).split(before)
        return first, others, _DIGITS + len(after)


class Template:
    """A message to many subscribers: encoded once per channel; each publication's payload is inserted as bytes.

    A second form, for clients that recover by position, adds `offset` and `position` at the end.
    """

    __slots__ = ("_after", "_before", "_msgpack", "_positioned", "has_place_for_position")

    def __init__(self, service: str, message: Json | Payload) -> None:
        """Encode the envelope of `message`, a JSON value with PAYLOAD in place of exactly one value.

        Raises ValueError: PAYLOAD is missing or there more than once. InvalidMessage: as `encode`.
        """
        marks = _Marks()
        value: Json = {"service": service, "message": _fill(message, marks.at(0), 0)}
        self._before, after = _cut(marks, value, Encoding.JSON, 1)
        self._after = _same(after)
        # A node may have a million templates, most of them idle: everything else is made from the JSON on first use.
        self._msgpack: tuple[bytes, ...] | None = None
        self._positioned: dict[tuple[Encoding, bool], list[bytes]] | None = None
        # True if the second form exists: the message is an object without the keys that it adds
        self.has_place_for_position = isinstance(message, dict) and not _PLACE & message.keys()

    def render(self, payload: bytes, encoding: Encoding) -> bytes:
        """Return the whole envelope with `payload`, which must be one strict value in this encoding: unchecked."""
        if encoding is _JSON:
            return self._before + payload + self._after
        before, after = self._msgpack or self._in_msgpack()
        return before + payload + after

    def render_at(
        self, payload: bytes, encoding: Encoding, *, offset: int, position: str, is_tombstone: bool = False
    ) -> bytes:
        """Return the second form with `payload`. is_tombstone: add `"tombstone": true` for clients counting offsets."""
        if self._positioned is None:
            self._positioned = {}
        pieces = self._positioned.get((encoding, is_tombstone))
        if pieces is None:
            pieces = self._positioned[encoding, is_tombstone] = self._with_position(encoding, is_tombstone)
        first, second, third, last = pieces
        return first + payload + second + encode(offset, encoding) + third + encode(position, encoding) + last

    def _in_msgpack(self) -> tuple[bytes, ...]:
        marks = _Marks()
        self._msgpack = tuple(_cut(marks, self._filled(marks.at(0)), Encoding.MSGPACK, 1))
        return self._msgpack

    def _with_position(self, encoding: Encoding, is_tombstone: bool) -> list[bytes]:
        marks = _Marks()
        value = self._filled(marks.at(0))
        value["message"] |= {"tombstone": True} if is_tombstone else {}
        value["message"] |= {"offset": marks.at(1), "position": marks.at(2)}
        return _cut(marks, value, encoding, 3)

    def _filled(self, mark: str) -> dict[str, Any]:
        """Return the envelope with a mark in place of the payload."""
        return cast("dict[str, Any]", decode_json(b'%b"%b"%b' % (self._before, mark.encode(), self._after)))


class Shared:
    """A JSON value that many replies contain, encoded once per encoding. value: must not change any more."""

    __slots__ = ("_encoded", "value")

    def __init__(self, value: Json) -> None:
        self.value = value
        self._encoded: dict[Encoding, bytes] = {}

    def encoded(self, encoding: Encoding) -> bytes:
        """Return the encoded value, from the cache after the first call. Raises InvalidMessage."""
        found = self._encoded.get(encoding)
        if found is None:
            found = self._encoded[encoding] = encode(self.value, encoding, max_values=VALUES_MAX)
        return found


class Compound:
    """A message with enclosed payloads. value: a JSON value, with the result of `enclose` in place of each payload.

    instead: the reply of a command if the client cannot take this much now; None = reply with an error.
    """

    __slots__ = ("_channel", "_followers", "_marks", "_notification", "_payloads", "instead", "value")

    def __init__(self) -> None:
        self.value: Json = None
        self._marks = _Marks()
        self._payloads: list[bytes | Shared] = []
        self.instead: Json = None
        self._channel: Json = None
        self._notification: Json = None
        self._followers: Sequence[Publication] = ()

    def enclose(self, payload: bytes, *, is_checked: bool = False) -> str:
        """Add a JSON payload; returns its placeholder for `value`. is_checked: the caller has validated it.

        Raises InvalidMessage: not a strict JSON text.
        """
        if not is_checked:
            decode_json(payload)
        self._payloads.append(payload)
        return self._marks.at(len(self._payloads) - 1)

    def share(self, entity: Shared) -> str:
        """Add a value that other replies contain too; returns its placeholder for `value`."""
        self._payloads.append(entity)
        return self._marks.at(len(self._payloads) - 1)

    def encode(self, around: Json, encoding: Encoding) -> bytes:
        """Encode a message that contains `value`. Raises InvalidMessage: it is not JSON apart from the payloads."""
        first, others, end = self._marks.cut(around, encoding)
        found = [first]
        for each in others:
            found += self._payload(int(each[:_DIGITS]), encoding), each[end:]
        return b"".join(found)

    def resolve(self, around: dict[str, Any]) -> dict[str, Any]:
        """Return a message that contains `value` with the payloads, as JSON, in their places, for foreign protocols."""
        places = {self._marks.at(number): payload for number, payload in enumerate(self._payloads)}
        found: dict[str, Any] = _replaced(around, places)
        return found

    def follow(self, channel: Json, notification: Json, publications: Sequence[Publication]) -> None:
        """Send the channel's notifications after the message.

        notification: their template. publications: must be checked.
        """
        self._channel, self._notification, self._followers = channel, notification, publications

    def followers(self, service: str, encoding: Encoding) -> list[bytes]:
        """Encode the notifications that follow the message."""
        if not self._followers:
            return []
        template = Template(service, self._notification)
        return [_render(template, each, encoding) for each in self._followers]

    def foreign_followers(self, rendering: Rendering) -> list[bytes]:
        """Encode the notifications that follow the message for a foreign protocol that has the service."""
        known = [each for each in self._followers if not each.is_tombstone]
        encode = rendering.encoder(self._channel)
        found = [encode(each.payload, each.position, each.attributes) for each in known]
        return [each for each in found if each is not None]

    def _payload(self, number: int, encoding: Encoding) -> bytes:
        payload = self._payloads[number]
        if isinstance(payload, Shared):
            return payload.encoded(encoding)
        return payload if encoding is Encoding.JSON else encode_msgpack(decode_json(payload))


def _render(template: Template, publication: Publication, encoding: Encoding) -> bytes:
    payload, position = publication.payload, publication.position
    assert position is not None  # noqa: S101 - for the type checker
    if encoding is not Encoding.JSON:
        payload = encode_msgpack(decode_json(payload))
    is_tombstone = publication.is_tombstone
    return template.render_at(
        payload, encoding, offset=position.offset, position=str(position), is_tombstone=is_tombstone
    )


def _replaced(value: Any, places: dict[str, bytes | Shared]) -> Any:
    """Copy a message with the payloads in place of their marks. It nests as little as services' messages do."""
    if isinstance(value, dict):
        return {key: _replaced(item, places) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replaced(item, places) for item in value]
    payload = places.get(value) if isinstance(value, str) else None
    if payload is None:
        return value
    return payload.value if isinstance(payload, Shared) else payload


@lru_cache(maxsize=64)
def _same(data: bytes) -> bytes:
    """Return equal bytes once: what follows the payload is the same in nearly all templates of a service."""
    return data


def _cut(marks: _Marks, value: Json, encoding: Encoding, count: int) -> list[bytes]:
    """Cut a message at its marks 0, 1, ..., each there once and in this order. Raises ValueError: they are not."""
    first, others, end = marks.cut(value, encoding)
    if [each[:_DIGITS] for each in others] != _IN_ORDER[:count]:
        raise ValueError("A template needs PAYLOAD exactly once")
    return [first, *[each[end:] for each in others]]


def _fill(message: Any, mark: str, depth: int) -> Any:
    if message is PAYLOAD:
        return mark
    if depth > MAX_DEPTH:
        raise InvalidMessage("Nested too deeply")
    if isinstance(message, dict):
        return {key: _fill(item, mark, depth + 1) for key, item in message.items()}
    if isinstance(message, (list, tuple)):
        return [_fill(item, mark, depth + 1) for item in message]
    return message
