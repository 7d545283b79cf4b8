"""Tokens: values that are stored for a limited time under unguessable names, and can be taken once.

If the answer to a call that takes a token is lost, the token may be taken nevertheless. So Redis stores the taker for
RETRY_S, and returns the value again to the same taker.
"""

import secrets
from typing import Any

import msgspec

from snorky.gateway.protocol.codec import encode_json
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.keys import taken_key, token_key

__all__ = ["Tokens", "new_token"]

TOKEN_LENGTH = 32
RETRY_S = 60.0  # a client retries while Redis fails over, which takes up to 30 s


def new_token() -> str:
    """Draw a token: 128 bits, in hexadecimal."""
    return secrets.token_hex(TOKEN_LENGTH // 2)


class Tokens:
    """Stores and returns values. Each token is a key with its own time to live."""

    def __init__(self, scripts: Scripts, *, prefix: str) -> None:
        self._scripts = scripts
        self._prefix = prefix

    async def put(self, value: Any, ttl_s: float, *, token: str | None = None) -> str:
        """Store a value; returns its token: a new one unless given. Raises BrokerUnavailable."""
        token = new_token() if token is None else token
        ttl_ms = b"%d" % max(1, round(ttl_s * 1000))
        data = encode_json(value)
        await self._scripts.run(command(b"SET", token_key(self._prefix, token), data, b"PX", ttl_ms))
        return token

    async def read(self, token: str) -> Any | None:
        """Return a value and leave it there; None = there is none. token: any text. Raises BrokerUnavailable."""
        if not _is_token(token):
            return None
        (data,) = await self._scripts.run(command(b"GET", token_key(self._prefix, token)))
        return None if data is None else msgspec.json.decode(data)

    async def take(self, token: str, taker: str) -> Any | None:
        """Take a value, once; None = there is none, or another taker has it. token: any text, checked here.

        taker: ASCII without blanks. The same taker can take the value again for RETRY_S. Raises BrokerUnavailable.
        """
        if not _is_token(token):
            return None
        keys = [token_key(self._prefix, token), taken_key(self._prefix, token)]
        retry_ms = b"%d" % round(RETRY_S * 1000)
        (data,) = await self._scripts.run(Call("take", keys, [taker.encode(), retry_ms]))
        return None if data is None else msgspec.json.decode(data)


def _is_token(text: str) -> bool:
    return len(text) == TOKEN_LENGTH and set(text) <= set("0123456789abcdef")
