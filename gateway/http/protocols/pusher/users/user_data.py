"""The user in a client's sign-in. Pure."""

from typing import Any

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.identities import identity_text

__all__ = ["object_in", "user_id_of"]


def object_in(text: object) -> dict[str, Any]:
    """Decode a text that is a JSON object. Raises InvalidMessage."""
    value = decode_json(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else None
    if not isinstance(value, dict):
        raise InvalidMessage("Expected a text that is a JSON object")
    return value


def user_id_of(value: object) -> str:
    """Return a user's id as a text: libraries send numbers too. Raises InvalidMessage."""
    try:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        return identity_text(str(value) if is_number else value)
    except ValueError as error:
        raise InvalidMessage(str(error)) from None
