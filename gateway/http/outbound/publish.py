"""Publishes through a node's `/backend`: for the command line without a redis_url."""

from collections.abc import Iterable, Sequence
from typing import Any, Final

import aiohttp

from snorky.gateway.protocol.codec import decode_json, encode_json

__all__ = ["post_all"]

BATCH_MAX: Final = 500  # envelopes of one request
TIMEOUT_S: Final = 15.0


async def post_all(
    url: str, service: str, channel: Any, batches: Iterable[Sequence[bytes]], *, key: str | None = None
) -> int:
    """Publish JSON payloads in order, by POST to url, without retries. service: the backend's, "pubsub_backend".

    Returns the number of published messages. Raises ConnectionError, with a readable text.
    """
    headers = {} if key is None else {"X-Backend-Key": key}
    sent = 0
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)) as session:
        for batch in batches:
            for start in range(0, len(batch), BATCH_MAX):
                body = [_envelope(service, channel, payload) for payload in batch[start : start + BATCH_MAX]]
                try:
                    async with session.post(url, data=encode_json(body), headers=headers) as response:
                        status, answer = response.status, await response.read()
                except (aiohttp.ClientError, TimeoutError, OSError) as error:
                    reason = str(error) or type(error).__name__
                    raise ConnectionError(f"no node answers at {url}: {reason}; is `snorky serve` running?") from error
                if status != 200:
                    raise ConnectionError(f"{url} answers {status}: {answer[:200].decode(errors='replace')}")
                replies = decode_json(answer)
                for reply in replies if isinstance(replies, list) else [replies]:
                    message = reply.get("message") if isinstance(reply, dict) else None
                    if not isinstance(message, dict) or message.get("type") != "response":
                        text = message.get("message") if isinstance(message, dict) else "no reply"
                        raise ConnectionError(f"the node refuses: {text}; {sent} were published")
                    sent += 1
    return sent


def _envelope(service: str, channel: Any, payload: bytes) -> dict[str, Any]:
    params = {"channel": channel, "message": decode_json(payload)}
    return {"service": service, "message": {"command": "publish", "params": params, "callId": 0}}
