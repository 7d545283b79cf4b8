"""Encodes usual replies to calls in JSON: the reply's own bytes are prepared, and only data and the id are encoded.

`encode_json` would verify the whole message value by value, which costs several times as much as encoding it.
"""

from typing import Final

from snorky.gateway.protocol.codec import Json, encode_json

__all__ = ["Responses"]

_SCALARS: Final = frozenset((bool, int, float, str))
_ID_MAX: Final = 2**63


class Responses:
    """The replies of one service. service: [a-z0-9_-]+."""

    __slots__ = ("_head",)

    def __init__(self, service: str) -> None:
        self._head = b'{"service":"%s","message":{"type":"response","data":' % service.encode()

    def encode(self, data: Json, call_id: Json) -> bytes | None:
        """Encode a reply; None: the data is a container, or the id unusual. Raises InvalidMessage: as `encode_json`."""
        if data is None:
            encoded = b"null"
        elif type(data) in _SCALARS:
            encoded = encode_json(data)
        else:
            return None
        if type(call_id) is int and 0 <= call_id < _ID_MAX:
            return b'%s%s,"callId":%d}}' % (self._head, encoded, call_id)
        if type(call_id) is str:
            return b'%s%s,"callId":%s}}' % (self._head, encoded, encode_json(call_id))
        return None
