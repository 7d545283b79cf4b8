"""A WebSocket client for the command line: subscribes, and yields what it receives.

It is for people, not for programs: no recovery, one reconnect policy.
"""

import asyncio
import random
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from snorky.gateway.errors import InvalidInput
from snorky.gateway.protocol.codec import decode_json, encode_json

__all__ = ["Heard", "listen"]

DIAL_TIMEOUT_S: Final = 5.0
BACKOFF_MAX_S: Final = 10.0
_REASONS: Final = {
    4501: ": the token is bad or has expired",
    4502: ": the gateway requires authentication, use --token",
    4503: ": the token was revoked",
}
_FINAL_CODES: Final = range(4500, 5000)  # PROTOCOL: do not reconnect


@dataclass(frozen=True, slots=True)
class Heard:
    """One item to show. kind: "message", "notice" (about the connection) or "error"."""

    kind: str
    text: str = ""
    channel: Any = None
    message: Any = None


async def listen(
    url: str, service: str, channels: Sequence[Any], *, token: str | None = None
) -> AsyncGenerator[Heard, None]:
    """Subscribe to channels and yield what is received, indefinitely; reconnects after a lost connection.

    Raises ConnectionError: the first connection fails, or the gateway closes with a code that forbids reconnecting.
    """
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    failures = 0
    was_connected = False
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(connect=DIAL_TIMEOUT_S)) as session:
        while True:
            try:
                async with session.ws_connect(
                    url, protocols=["snorky.json"], headers=headers, heartbeat=20.0
                ) as socket:
                    was_connected, failures = True, 0
                    yield Heard("notice", f"connected to {url}")
                    for number, channel in enumerate(channels):
                        request = {"command": "subscribe", "params": {"channel": channel}, "callId": number}
                        await socket.send_str(encode_json({"service": service, "message": request}).decode())
                    async for frame in socket:
                        if frame.type is aiohttp.WSMsgType.TEXT:
                            heard = _interpret(frame.data, service, channels)
                            if heard is not None:
                                yield heard
                    code = socket.close_code
            except aiohttp.InvalidURL as error:
                raise ConnectionError(f"{url} is not a URL; write ws://127.0.0.1:8002/ws") from error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                reason = str(error) or type(error).__name__
                if not was_connected:
                    raise ConnectionError(f"{url} cannot be reached: {reason}") from error
                yield Heard("notice", f"cannot connect: {reason}")
            else:  # not inside `try`: this error would look like a failed attempt, and be retried
                if code in _FINAL_CODES:
                    raise ConnectionError(f"the gateway closed the connection with {code}{_REASONS.get(code or 0, '')}")
                yield Heard("notice", f"connection ended ({code})")
            failures += 1
            await asyncio.sleep(random.uniform(0.1, min(BACKOFF_MAX_S, 0.5 * 2**failures)))  # noqa: S311 - no secret


def _interpret(text: str, service: str, channels: Sequence[Any]) -> Heard | None:
    try:
        envelope = decode_json(text.encode())
    except InvalidInput as error:
        return Heard("error", f"invalid message: {error}")
    message = envelope.get("message") if isinstance(envelope, dict) else None
    if not isinstance(envelope, dict) or not isinstance(message, dict):
        return None
    if envelope.get("service") == "gateway" and message.get("type") == "moving":
        return Heard("notice", "this node is going away")
    if message.get("type") == "message" and envelope.get("service") == service:
        return Heard("message", channel=message.get("channel"), message=message.get("message"))
    call_id = message.get("callId")
    about = channels[call_id] if isinstance(call_id, int) and 0 <= call_id < len(channels) else None
    if message.get("type") == "response" and about is not None:
        return Heard("notice", f"subscribed to {about}", channel=about)
    if message.get("type") == "error":
        return Heard("error", str(message.get("message")), channel=about)
    return None
