"""Requests of Pusher's HTTP API, made and signed by hand: `called` sends one, `target_of` is its signed URL.

    assert await called(url, "POST", "/events", {"name": "a", "data": "1", "channel": "news"}) == (200, {})

Everything that a request has can be replaced by something wrong: `auth` replaces or removes parameters before the
signature, `signed_path` is signed in place of the path.
"""

import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

__all__ = ["API_ENV", "API_KEY", "API_SECRET", "APP", "BESIDE_SHOP", "called", "post_head", "target_of"]

APP: Final = "7"  # the library of PyPI takes only numbers
API_KEY: Final = "key-of-the-api"
API_SECRET: Final = hashlib.sha256(b"the secret of the api").hexdigest()
API_ENV: Final = {
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP}__KEY": API_KEY,
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP}__SECRET": API_SECRET,
    f"SNORKY_PUBLIC__PUSHER_APPS__{APP}__SERVICE": "pubsub",
}
BESIDE_SHOP: Final = API_ENV | {"SNORKY_PUBLIC__PUSHER_APPS__SHOP__SERVICE": "pubsub"}  # the app of `protocol_nodes`


def target_of(
    method: str,
    path: str,
    body: bytes = b"",
    *,
    query: Mapping[str, str] | None = None,
    auth: Mapping[str, str | None] | None = None,
    secret: str = API_SECRET,
    signed_path: str | None = None,
    app: str = f"/apps/{APP}",
) -> str:
    """Make the signed target of a request. path: decoded, after the path of the app. query: further parameters."""
    fields: dict[str, str | None] = {
        "auth_key": API_KEY,
        "auth_timestamp": f"{time.time():.0f}",
        "auth_version": "1.0",
        "body_md5": hashlib.md5(body, usedforsecurity=False).hexdigest() if body else None,
        **(query or {}),
        **(auth or {}),
    }
    stated = {name: value for name, value in fields.items() if value is not None}
    pairs = sorted((name.lower(), value) for name, value in stated.items())
    text = f"{method}\n{signed_path or app + path}\n" + "&".join(f"{name}={value}" for name, value in pairs)
    signature = hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest()
    return f"{quote(app + path, safe='/;@,=%')}?{urlencode({'auth_signature': signature} | stated)}"


async def called(url: str, method: str, path: str, body: Any = None, **about: Any) -> tuple[int, Any]:
    """Send a request; returns its status, and the object or text of its answer. body: bytes, or a JSON value."""
    data = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
    address = URL(url + target_of(method, path, data, **about), encoded=True)
    async with aiohttp.ClientSession() as http, http.request(method, address, data=data or None) as response:
        text = await response.text()
        return response.status, json.loads(text) if response.content_type == "application/json" else text.strip()


def post_head(target: str, length: int | None, *headers: str) -> bytes:
    """Make the head of a POST. length: None = the body is chunked."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return "\r\n".join([f"POST {target} HTTP/1.1", "Host: x", size, *headers, "", ""]).encode()
