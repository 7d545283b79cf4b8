"""Compound: a message to one connection that contains payloads which are encoded and checked already. Pure.

    compound = Compound()
    compound.value = {"messages": [{"message": compound.enclose(payload)} for payload in payloads]}

    names = Shared(["alice", "bob"])             # encoded once for all replies
    compound.value = compound.share(names)

    compound.follow(self.notification(channel), publications)      # sent after it, in the form of live notifications

Rules:
- Each payload is within the limits of a message; many together may exceed them, or nest deeper. So payloads are
  inserted as bytes, after the checks of the surrounding message.
- Following notifications are written together with the message, so nothing comes in between; but as separate
  messages, so a client with a slow connection receives the first of them long before the last.
"""

import secrets
from collections.abc import Sequence

from snorky.gateway.protocol.codec import Encoding, Json, Template, decode_json, encode, encode_msgpack
from snorky.gateway.protocol.publication import Publication

__all__ = ["Compound", "Shared"]

VALUES_MAX = 16 << 20  # of a shared value: no node decodes it, and its bytes are limited when written


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

    __slots__ = ("_followers", "_mark", "_payloads", "_shape", "instead", "value")

    def __init__(self) -> None:
        self.value: Json = None
        self._mark = secrets.token_hex(16)  # 128 random bits: cannot occur elsewhere in the message
        self._payloads: list[bytes | Shared] = []
        self.instead: Json = None
        self._shape: Json = None
        self._followers: Sequence[Publication] = ()

    def enclose(self, payload: bytes, *, is_checked: bool = False) -> str:
        """Add a JSON payload; returns its placeholder for `value`. is_checked: the caller has validated it.

        Raises InvalidMessage: not a strict JSON text.
        """
        if not is_checked:
            decode_json(payload)
        self._payloads.append(payload)
        return self._sign(len(self._payloads) - 1)

    def share(self, entity: Shared) -> str:
        """Add a value that other replies contain too; returns its placeholder for `value`."""
        self._payloads.append(entity)
        return self._sign(len(self._payloads) - 1)

    def encode(self, around: Json, encoding: Encoding) -> bytes:
        """Encode a message that contains `value`. Raises InvalidMessage: it is not JSON apart from the payloads."""
        before, _, after = encode(self._sign(0), encoding).rpartition(b"0" * 8)
        first, *others = encode(around, encoding).split(before)
        found = [first]
        for each in others:
            found += self._payload(int(each[:8]), encoding), each[8 + len(after) :]
        return b"".join(found)

    def follow(self, notification: Json, publications: Sequence[Publication]) -> None:
        """Send notifications after the message. notification: their template. publications: must be checked."""
        self._shape, self._followers = notification, publications

    def followers(self, service: str, encoding: Encoding) -> list[bytes]:
        """Encode the notifications that follow the message."""
        if not self._followers:
            return []
        template = Template(service, self._shape)
        return [_render(template, each, encoding) for each in self._followers]

    def _sign(self, number: int) -> str:
        return f"{self._mark}{number:08d}"

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
