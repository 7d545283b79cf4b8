"""The two forms of the protocol: JSON, one text a line, and Protocol Buffers. Pure.

A message is an object. Payloads in it are `msgspec.Raw`: JSON that is already checked.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.centrifuge.protobuf import encode_reply, publication_encoder, read_commands
from snorky.gateway.protocol.attributes import read_attributes
from snorky.gateway.protocol.codec import decode_json, encode_json
from snorky.gateway.protocol.publication import Position

__all__ = ["FORMS", "Form", "Publishing", "json_of", "one_line", "payload_of"]

_BREAKS_TO_SPACES: Final = bytes.maketrans(b"\r\n", b"  ")
_LF, _CR = b"\n\r"


# Encodes the push of a publication. Arguments: its payload, JSON; its position, None if it has none; its attributes.
Publishing = Callable[[bytes, Position | None, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Form:
    """encode: a reply or push. read: the commands of a frame, each with its size; raises InvalidMessage.

    encoder: makes the function that encodes the pushes of a channel's publications. The result is that of `encode`;
    each delivery to a channel needs it, so it is written for speed.
    between: what joins messages in a frame. ping: an empty message.
    """

    name: str
    encode: Callable[[Mapping[str, Any]], bytes]
    encoder: Callable[[str], Publishing]
    read: Callable[[bytes], Iterator[tuple[dict[str, Any], int]]]
    between: bytes
    ping: bytes

    def join(self, messages: Iterable[bytes]) -> bytes:
        """Join encoded messages for one frame."""
        return self.between.join(messages)


def one_line(payload: bytes) -> bytes:
    """Return a payload without line breaks: in JSON they are only layout, and they would end the message."""
    # by their numbers: `in` takes five times as long with bytes, because it tries to read them as a number first
    return payload.translate(_BREAKS_TO_SPACES) if _LF in payload or _CR in payload else payload


def payload_of(payload: bytes) -> msgspec.Raw:
    """Return a payload for a message. payload: JSON."""
    return msgspec.Raw(one_line(payload))


def json_of(value: Any, max_values: int) -> msgspec.Raw:
    """Encode the data of a service's reply for a message. Payloads in it are bytes, JSON that is already checked.

    Raises InvalidMessage: it is not JSON.
    """
    found: list[bytes] = []
    prepared = _without_payloads(value, found)
    if not found:
        return msgspec.Raw(encode_json(value, max_values=max_values))
    encode_json(prepared, max_values=max_values)  # the checks
    return msgspec.Raw(msgspec.json.encode(_with_raw(value)))


def _without_payloads(value: Any, found: list[bytes]) -> Any:
    if isinstance(value, bytes):
        found.append(value)
        return None
    if isinstance(value, dict):
        return {key: _without_payloads(item, found) for key, item in value.items()}
    return [_without_payloads(item, found) for item in value] if isinstance(value, (list, tuple)) else value


def _with_raw(value: Any) -> Any:
    if isinstance(value, bytes):
        return payload_of(value)
    if isinstance(value, dict):
        return {key: _with_raw(item) for key, item in value.items()}
    return [_with_raw(item) for item in value] if isinstance(value, (list, tuple)) else value


def _publication_encoder(channel: str) -> Publishing:
    before = b'{"push":{"channel":%b,"pub":{"data":' % msgspec.json.encode(channel)

    def encode(payload: bytes, position: Position | None, attributes: bytes) -> bytes:
        if _LF in payload or _CR in payload:
            payload = one_line(payload)
        end = b"}}}"
        if attributes and (found := read_attributes(attributes)):
            end = b",%b}}" % msgspec.json.encode(found)[1:]
        if position is None:
            return before + payload + end
        return b'%b%b,"offset":%d%b' % (before, payload, position.offset, end)

    return encode


def _read_lines(frame: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    for line in frame.split(b"\n"):
        if line.strip():
            value = decode_json(line)
            if not isinstance(value, dict):
                raise InvalidMessage("A command is an object")
            yield value, len(line)


FORMS: Final[Mapping[str, Form]] = {
    "json": Form("json", msgspec.json.encode, _publication_encoder, _read_lines, b"\n", b"{}"),
    "protobuf": Form("protobuf", encode_reply, publication_encoder, read_commands, b"", b"\0"),
}
