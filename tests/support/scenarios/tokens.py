"""Issuers of tokens: keys of each kind, valid and invalid tokens, a server with a JWKS document.

issuer = Issuer("RS256", "key-1"); issuer.token("alice", exp=...)
async with KeyServer(issuer) as keys: ... keys.url, keys.requests
"""

import asyncio
import base64
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import jwt
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

__all__ = ["OPEN_PUBSUB", "SECRET", "TOKENS_AND_OPEN_PUBSUB", "Issuer", "KeyServer", "claims", "forged", "hmac_token"]

SECRET = "a secret of more than thirty-two bytes"
# settings of a node that authenticates clients, and has pub/sub whose channels need no rule
OPEN_PUBSUB = {
    "SNORKY_SERVICES__AUTH__CLASS": "snorky.services.auth:AuthService",
    "SNORKY_SERVICES__PUBSUB__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_SERVICES__PUBSUB__UNMATCHED": "open",
}
TOKENS_AND_OPEN_PUBSUB = {"SNORKY_AUTH__HMAC_SECRET": SECRET, **OPEN_PUBSUB}


def claims(identity: Any = "alice", **others: Any) -> dict[str, Any]:
    """Return the claims of a valid token, for a minute; None omits one."""
    now_s = time.time()
    all_claims = {"sub": identity, "iat": now_s, "exp": now_s + 60, **others}
    return {name: value for name, value in all_claims.items() if value is not None}


def hmac_token(identity: Any = "alice", *, secret: str = SECRET, **others: Any) -> str:
    """Make an HS256 token."""
    return jwt.encode(claims(identity, **others), secret, algorithm="HS256")


def forged(header: Mapping[str, Any] | str, payload: Any, *, secret: bytes | None = SECRET.encode()) -> str:
    """Make a token that no library would: any header, any payload; signed by HMAC, or not at all."""
    parts = [value if isinstance(value, str) else json.dumps(value) for value in (header, payload)]
    signed = b".".join(_base64(part.encode()) for part in parts)
    signature = b"" if secret is None else hmac.new(secret, signed, hashlib.sha256).digest()
    return (signed + b"." + _base64(signature)).decode()


def _base64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


class Issuer:
    """A private key that signs tokens. kind: "RS256" or "ES256"."""

    def __init__(self, kind: str = "ES256", key_id: str | None = "key-1") -> None:
        self.kind = kind
        self.key_id = key_id
        self.private: Any = (
            rsa.generate_private_key(65537, 2048) if kind == "RS256" else ec.generate_private_key(ec.SECP256R1())
        )
        self.public = self.private.public_key()

    @property
    def pem(self) -> bytes:
        """The public key."""
        return self.public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    def token(self, identity: Any = "alice", *, headers: Mapping[str, Any] | None = None, **others: Any) -> str:
        """Sign a token."""
        header = {**({"kid": self.key_id} if self.key_id is not None else {}), **(headers or {})}
        return jwt.encode(claims(identity, **others), self.private, algorithm=self.kind, headers=header)

    def jwk(self, **others: Any) -> dict[str, Any]:
        """Return the public key as an entry of a JWKS document."""
        algorithm = jwt.get_algorithm_by_name(self.kind)
        entry = algorithm.to_jwk(self.public, as_dict=True)
        entry.pop("key_ops", None)
        return {**entry, **({"kid": self.key_id} if self.key_id is not None else {}), **others}


class KeyServer:
    """Serves the JWKS document of some issuers on loopback. requests: their count. status: of its answers.

    gate: while it is cleared, answers wait.
    """

    def __init__(self, *issuers: Issuer) -> None:
        self.issuers = list(issuers)
        self.requests = 0
        self.status = 200
        self.gate = asyncio.Event()
        self.gate.set()
        self.url = ""
        self._runner: web.AppRunner | None = None

    @property
    def document(self) -> bytes:
        return json.dumps({"keys": [issuer.jwk() for issuer in self.issuers]}).encode()

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.add_routes([web.get("/keys", self._answer)])
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/keys"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _answer(self, request: web.Request) -> web.Response:
        self.requests += 1
        document = self.document  # as it is now, however long the answer takes
        await self.gate.wait()
        return web.Response(status=self.status, body=document, content_type="application/json")
