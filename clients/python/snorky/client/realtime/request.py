"""Request: one call, checked and encoded when it is created.

It rejects everything that a node rejects: an invalid value raises an exception in its caller and affects neither the
queue nor the connection. Later changes of the parameters have no effect.
"""

from typing import Any, Final

from snorky.client.strict import encode

__all__ = ["CALL_ID_BYTES", "MESSAGE_MAX_BYTES", "Request"]

MESSAGE_MAX_BYTES: Final = 65_536  # a node's `message_max_bytes`, unless its operator sets another
CALL_ID_BYTES: Final = 32  # 16 hexadecimal digits, a dot and a number: enough for 10^15 calls per connection
_PLACE = "0" * CALL_ID_BYTES
_TAIL_BYTES = len(f'"{_PLACE}"}}}}')


class Request:
    """A call of a service's command, ready to be sent on any connection.

    Raises ValueError: a value that a node rejects, or more than max_bytes; TypeError: not JSON.
    """

    def __init__(self, service: str, command: str, params: dict[str, Any], *, max_bytes: int) -> None:
        if not isinstance(service, str) or not isinstance(command, str):
            raise TypeError("service, command: write their names as strings")
        text = encode({"service": service, "message": {"command": command, "params": params, "callId": _PLACE}})
        if len(text) > max_bytes:
            raise ValueError(
                f"the message has {len(text)} bytes, more than max_message_bytes ({max_bytes}): send less at once; "
                "if the gateway's message_max_bytes is higher, give Client the same number as max_message_bytes"
            )
        self.service = service
        self.command = command
        self.size_bytes = len(text)
        self._head = text[:-_TAIL_BYTES].decode()

    def text(self, call_id: str) -> str:
        """Return the message with a call ID, which must need no JSON escapes."""
        return f'{self._head}"{call_id}"}}}}'
