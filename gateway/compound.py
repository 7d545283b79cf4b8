"""Compound: a message to one connection with payloads in it that were encoded, and checked, before. Pure.

    compound = Compound()
    compound.value = {"messages": [{"message": compound.enclose(payload)} for payload in payloads]}

    names = Shared(["alice", "bob"])             # encoded once, whoever asks for it
    compound.value = compound.share(names)

    compound.follow(self.notification(channel), publications)      # behind it, as they would come live

Rules:
- Each payload is within the bounds of a message by itself; many together need not be, nor deeper down. So they are put
  in as bytes, behind the checks of what is around them.
- What follows is written together with the message, so nothing comes in between; but as messages of their own, so a
  client behind a slow line has the first of them long before the last.
"""

import secrets
from collections.abc import Sequence

from gateway.codec import Encoding, Json, Template, decode_json, encode, encode_msgpack
from gateway.publication import Publication

__all__ = ["Compound", "Shared"]

VALUES_MAX = 16 << 20  # in a shared entity: no node reads it, and what is written is bounded in bytes


class Shared:
    """A JSON entity in the replies to many, encoded once per encoding. value: not to be changed any more."""

    __slots__ = ("_encoded", "value")

    def __init__(self, value: Json) -> None:
        self.value = value
        self._encoded: dict[Encoding, bytes] = {}

    def encoded(self, encoding: Encoding) -> bytes:
        """Encode it, or give what was encoded before. Raises InvalidMessage."""
        found = self._encoded.get(encoding)
        if found is None:
            found = self._encoded[encoding] = encode(self.value, encoding, max_values=VALUES_MAX)
        return found


class Compound:
    """A value with enclosed payloads. value: a JSON entity, with what `enclose` returned where the payloads stand.

    instead: what a command replies if the client cannot take so much now; None = an error says so.
    """

    __slots__ = ("_followers", "_mark", "_payloads", "_shape", "instead", "value")

    def __init__(self) -> None:
        self.value: Json = None
        self._mark = secrets.token_hex(16)  # 128 random bits: stands nowhere else
        self._payloads: list[bytes | Shared] = []
        self.instead: Json = None
        self._shape: Json = None
        self._followers: Sequence[Publication] = ()

    def enclose(self, payload: bytes, *, is_checked: bool = False) -> str:
        """Take a payload, JSON; returns what stands for it. is_checked: by somebody before.

        Raises InvalidMessage: it is no strict JSON text.
        """
        if not is_checked:
            decode_json(payload)
        self._payloads.append(payload)
        return self._sign(len(self._payloads) - 1)

    def share(self, entity: Shared) -> str:
        """Take an entity that other replies have in them too; returns what stands for it."""
        self._payloads.append(entity)
        return self._sign(len(self._payloads) - 1)

    def encode(self, around: Json, encoding: Encoding) -> bytes:
        """Encode a message that has `value` in it. Raises InvalidMessage: what is around the payloads is no JSON."""
        before, _, after = encode(self._sign(0), encoding).rpartition(b"0" * 8)
        first, *others = encode(around, encoding).split(before)
        found = [first]
        for each in others:
            found += self._payload(int(each[:8]), encoding), each[8 + len(after) :]
        return b"".join(found)

    def follow(self, notification: Json, publications: Sequence[Publication]) -> None:
        """Have notifications come behind the message. notification: their shape. publications: checked."""
        self._shape, self._followers = notification, publications

    def followers(self, service: str, encoding: Encoding) -> list[bytes]:
        """Encode what follows the message."""
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
    assert position is not None  # noqa: S101 - a fact for the type checker
    if encoding is not Encoding.JSON:
        payload = encode_msgpack(decode_json(payload))
    is_tombstone = publication.is_tombstone
    return template.render_at(
        payload, encoding, offset=position.offset, position=str(position), is_tombstone=is_tombstone
    )
