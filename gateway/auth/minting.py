"""Mint tokens (JWT, RFC 7519) that `Verifier` accepts, for `snorky token`. Pure: the caller provides key and clock.

Applications mint with `snorky.client.tokens`, which needs no gateway; a test compares the claims of both.

    connection token      who a client is; by `channels` and `services`, what it may do where a rule says `token`
    subscription token    has the claim `channel`: what the identity may do there

The text of each ValueError is a sentence for people.
"""

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from snorky.gateway.auth.tokens import TOKEN_MAX_BYTES
from snorky.gateway.config.auth import Auth, PublicKey, algorithm_of
from snorky.gateway.config.rules.patterns import pattern_of
from snorky.gateway.errors import InvalidInput
from snorky.gateway.protocol.codec import channel_name, encode_json
from snorky.gateway.protocol.identities import identity_text

__all__ = ["OPERATIONS", "Minter", "SigningKey"]

OPERATIONS: Final = ("subscribe", "publish", "history", "presence", "join", "register", "acquire")

_PUBSUB: Final = "pubsub"  # the service that the claim `channels` is about
_PUBSUB_OPERATIONS: Final = OPERATIONS[:4]
_PATTERN_MAX: Final = 255  # characters
_RESERVED: Final = frozenset("sub exp iat nbf jti aud iss channel channels service services ops info".split())
_SERVICE: Final = re.compile(r"[a-z0-9_-]+").fullmatch

Permissions = Mapping[str, Sequence[str]]  # {PATTERN: [OPERATION, ...]}


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key, its algorithm, and its key id for the token's header."""

    algorithm: str
    key: Any = field(repr=False)  # a secret, or a private key
    key_id: str | None = None

    @classmethod
    def hmac(cls, secret: bytes, key_id: str | None = None) -> "SigningKey":
        """Make a key for HS256. secret: that of the settings, which have checked it."""
        return cls("HS256", secret, key_id)

    @classmethod
    def private(cls, pem: bytes, key_id: str | None = None) -> "SigningKey":
        """Make a key for RS256 or ES256, by the kind of private key. Raises ValueError: no such key in PEM form."""
        if b"ENCRYPTED" in pem:
            raise ValueError("the private key is encrypted; decrypt it with: openssl pkey -in KEY.pem")
        try:
            key = load_pem_private_key(pem, password=None)
        except Exception:  # OpenSSL's errors share no base class, and their text may quote the key
            raise ValueError('this is no private key in PEM form ("-----BEGIN PRIVATE KEY-----...")') from None
        return cls(algorithm_of(key.public_key()), key, key_id)

    @property
    def public_key(self) -> PublicKey | None:
        """The public key that verifies its tokens; None = a secret."""
        return self.key.public_key() if isinstance(self.key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) else None


class Minter:
    """Mints tokens by the settings of nodes: identity_claim, audience, issuer, token_max_lifetime_s."""

    def __init__(self, key: SigningKey, auth: Auth) -> None:
        self._key = key
        self._auth = auth

    def connection_token(
        self,
        identity: str | int,
        *,
        now_s: float,
        expires_in_s: float,
        claims: Mapping[str, Any] | None = None,
        channels: Permissions | None = None,
        services: Mapping[str, Permissions] | None = None,
        token_id: str | None = None,
    ) -> str:
        """Mint a token with which a client connects. now_s: wall clock. Raises ValueError."""
        payload = self._payload(now_s, expires_in_s, token_id)
        payload[self._auth.identity_claim] = _checked_identity(identity)
        for name, value in (claims or {}).items():
            if name in _RESERVED or name == self._auth.identity_claim:
                raise ValueError(f"the claim {name} is written by the command, or has another meaning for nodes")
            payload[name] = value
        if channels is not None:
            payload["channels"] = _checked_permissions(channels, _PUBSUB)
        if services is not None:
            payload["services"] = {
                _checked_service(name): _checked_permissions(each, name) for name, each in services.items()
            }
        return self._signed(payload)

    def subscription_token(
        self,
        identity: str | int | None,
        channel: Any,
        *,
        now_s: float,
        expires_in_s: float,
        ops: Sequence[str] | None = None,
        service: str | None = None,
        info: Any = None,
        token_id: str | None = None,
    ) -> str:
        """Mint a token that permits one channel. identity: None = to clients without one. Raises ValueError."""
        payload = self._payload(now_s, expires_in_s, token_id)
        if identity is not None:
            payload[self._auth.identity_claim] = _checked_identity(identity)
        try:
            channel_name(channel)
        except InvalidInput as error:
            raise ValueError(f"no node accepts this channel: {error}") from None
        payload["channel"] = channel
        if service is not None:
            payload["service"] = _checked_service(service)
        if ops is not None:
            payload["ops"] = _checked_operations(ops, service or _PUBSUB)
        if info is not None:
            payload["info"] = info
        return self._signed(payload)

    def _payload(self, now_s: float, expires_in_s: float, token_id: str | None) -> dict[str, Any]:
        longest_s = self._auth.token_max_lifetime_s
        if not 1 <= expires_in_s <= longest_s:
            raise ValueError(
                f"the token must be valid for 1 to {longest_s:.0f} seconds: nodes refuse a longer time, by [auth] "
                "token_max_lifetime_s"
            )
        fixed = {"aud": self._auth.audience, "iss": self._auth.issuer}
        return {
            "iat": math.floor(now_s),
            "exp": math.floor(now_s + expires_in_s),
            "jti": secrets.token_urlsafe(16) if token_id is None else token_id,
            **{name: value for name, value in fixed.items() if value is not None},
        }

    def _signed(self, payload: dict[str, Any]) -> str:
        key = self._key
        try:
            data = encode_json(payload)
        except InvalidInput as error:
            raise ValueError(f"a value is not JSON: {error}") from None
        headers = None if key.key_id is None else {"kid": key.key_id}
        # not jwt.encode: its later versions refuse integers as `sub`
        token = jwt.PyJWS().encode(data, key.key, algorithm=key.algorithm, headers=headers)
        if len(token) > TOKEN_MAX_BYTES:
            raise ValueError(f"the token has {len(token)} bytes, and nodes accept at most {TOKEN_MAX_BYTES}")
        return token


def _checked_identity(value: str | int) -> str | int:
    identity_text(value)
    return value


def _checked_service(name: str) -> str:
    if not _SERVICE(name):
        raise ValueError("a service's name has a-z, 0-9, _ and - only")
    return name


def _checked_permissions(written: Permissions, service: str) -> dict[str, list[str]]:
    found = {}
    for pattern, operations in written.items():
        if not 0 < len(pattern) <= _PATTERN_MAX or any(character < " " for character in pattern):
            raise ValueError(f"a pattern has 1 to {_PATTERN_MAX} characters, and no control characters")
        if pattern_of(pattern).sources:
            raise ValueError(f"{pattern} has a placeholder, which permits nothing in a token: write the value")
        found[pattern] = _checked_operations(operations, service)
    return found


def _checked_operations(written: Sequence[str], service: str) -> list[str]:
    known = _PUBSUB_OPERATIONS if service == _PUBSUB else OPERATIONS
    for operation in written:
        if operation not in known:
            raise ValueError(f"unknown operation {operation!r:.60}; known are {', '.join(known)}")
    if not written:
        raise ValueError(f"no operation is named; known are {', '.join(known)}")
    return list(written)
