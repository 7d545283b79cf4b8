"""Tokens (JWT, RFC 7519) by which clients of a gateway are identified and permitted, made without a server.

signer = Signer(hmac_secret=os.environ["SNORKY_AUTH__HMAC_SECRET"])
signer.connection_token("alice", channels={"orders:7": ["subscribe", "history"]})
signer.subscription_token("alice", "orders:7", expires_in_s=600)

Rules:
- A connection token identifies a client; its `channels` and `services` permit operations where a rule has the word
  `token`. A subscription token permits one channel. The gateway accepts neither in place of the other.
- Values that a gateway would refuse raise TypeError or ValueError at once, with a sentence that quotes no key.
- Integers remain integers: the identity 7 is `~7` in a gateway, never the text `7`.

Needs PyJWT: snorky-client[tokens].
"""

import math
import re
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from snorky.client.canonical import channel_name
from snorky.client.signing_keys import SigningKey
from snorky.client.strict import encode

__all__ = ["Signer"]

TOKEN_MAX_BYTES: Final = 8192  # a gateway accepts no longer ones
LIFETIME_MAX_S: Final = 366 * 86_400  # the most that a gateway's token_max_lifetime_s can be; its default is 30 days
TEXT_MAX_BYTES: Final = 255  # of an identity, and of a token's id
PATTERN_MAX: Final = 255  # characters

PUBSUB: Final = "pubsub"  # the service that `channels` is about, and the default of subscription tokens

_PUBSUB: Final = ("subscribe", "publish", "history", "presence")
_ALL: Final = (*_PUBSUB, "join", "register", "acquire")
# claims of RFC 7519, and those that the gateway reads
_RESERVED: Final = frozenset("sub exp iat nbf jti aud iss channel channels service services ops info".split())
_INTEGER_TEXT: Final = re.compile(r"~-?[0-9]+").fullmatch
_SERVICE: Final = re.compile(r"[a-z0-9_-]+").fullmatch
_PLACEHOLDER: Final = re.compile(r"\{[A-Za-z0-9_.-]+\}").search

Permissions = Mapping[str, Sequence[str]]  # {PATTERN: [OPERATION, ...]}


class Signer:
    """Mints tokens with one key. May be shared by threads.

    Pass one key. hmac_secret: the gateway's [auth] hmac_secret (HS256). private_key: a PEM, RSA of 2048 bits or more
    (RS256) or P-256 (ES256). key_id: for the header, as the JWKS document names the key. audience, issuer,
    identity_claim: as in [auth]. clock: the wall clock, in seconds. Raises ValueError, TypeError: an argument is not
    valid; ImportError: PyJWT is missing.
    """

    def __init__(
        self,
        *,
        hmac_secret: str | None = None,
        private_key: str | bytes | None = None,
        key_id: str | None = None,
        audience: str | None = None,
        issuer: str | None = None,
        identity_claim: str = "sub",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if hmac_secret is not None and private_key is None:
            self._key = SigningKey.hmac(hmac_secret, key_id)
        elif private_key is not None and hmac_secret is None:
            self._key = SigningKey.private(private_key, key_id)
        else:
            raise ValueError("pass either hmac_secret or private_key")
        if identity_claim != "sub" and identity_claim in _RESERVED:
            raise ValueError(f"identity_claim cannot be {identity_claim!r}, which has another meaning")
        self._identity_claim = _setting("identity_claim", identity_claim)
        self._fixed = {
            name: _setting(parameter, value)
            for name, parameter, value in (("aud", "audience", audience), ("iss", "issuer", issuer))
            if value is not None
        }
        self._clock = clock
        self._key.sign(b"{}")  # if PyJWT is missing, it raises here and not at the first request

    def __repr__(self) -> str:
        return f"Signer({self._key.algorithm})"

    def connection_token(
        self,
        identity: str | int,
        *,
        expires_in_s: float = 3600,
        claims: Mapping[str, Any] | None = None,
        channels: Permissions | None = None,
        services: Mapping[str, Permissions] | None = None,
        token_id: str | None = None,
    ) -> str:
        """Mint a token with which a client connects.

        identity: a text of 1 to 255 bytes, or an integer. expires_in_s: at most the gateway's token_max_lifetime_s.
        claims: further claims, JSON values, for the gateway's rules and hooks. channels: {PATTERN: [OPERATION, ...]}
        for the service `pubsub`; services: {SERVICE: {PATTERN: [OPERATION, ...]}}; `*` in a pattern matches any
        characters. token_id: `jti`, by which the token can be revoked; None = a random one. Raises ValueError,
        TypeError.
        """
        payload = self._payload(expires_in_s, token_id)
        payload[self._identity_claim] = _identity(identity)
        for name, value in _mapping("claims", claims or {}).items():
            self._refuse_reserved(name)
            payload[name] = _checked_json(f"the claim {name!r}", value)
        if channels is not None:
            payload["channels"] = _permissions("channels", channels, _PUBSUB)
        if services is not None:
            payload["services"] = {
                _service(name): _permissions(f"services: {name}", each, _operations_of(name))
                for name, each in _mapping("services", services).items()
            }
        return self._signed(payload)

    def subscription_token(
        self,
        identity: str | int | None,
        channel: Any,
        *,
        expires_in_s: float = 3600,
        ops: Sequence[str] | None = None,
        service: str | None = None,
        info: Any = None,
        token_id: str | None = None,
    ) -> str:
        """Mint a token that permits one channel to the connections of one identity.

        identity: None = to every client without an identity. channel: any JSON value, at most 255 bytes in canonical
        form. expires_in_s: until the subscription ends. ops: operations; None = subscribe, history, presence. service:
        None = `pubsub`. info: any JSON value, None = none. token_id: as for `connection_token`. Raises ValueError,
        TypeError.
        """
        payload = self._payload(expires_in_s, token_id)
        if identity is not None:
            payload[self._identity_claim] = _identity(identity)
        channel_name(channel)
        payload["channel"] = channel
        if service is not None:
            payload["service"] = _service(service)
        if ops is not None:
            payload["ops"] = _operations("ops", ops, _operations_of(service or PUBSUB))
        if info is not None:
            payload["info"] = _checked_json("info", info)
        return self._signed(payload)

    def _payload(self, expires_in_s: float, token_id: str | None) -> dict[str, Any]:
        now_s = self._clock()
        return {
            "iat": math.floor(now_s),
            "exp": math.floor(now_s + _lifetime(expires_in_s)),
            "jti": secrets.token_urlsafe(16) if token_id is None else _text("token_id", token_id),
            **self._fixed,
        }

    def _refuse_reserved(self, name: object) -> None:
        if not isinstance(name, str):
            raise TypeError(f"a claim's name is {type(name).__name__}, not a text")
        if name in _RESERVED or name == self._identity_claim:
            raise ValueError(f"claims cannot have {name!r}: the token has its own, or the gateway reads it otherwise")

    def _signed(self, payload: Mapping[str, Any]) -> str:
        token = self._key.sign(encode(payload))
        if len(token) > TOKEN_MAX_BYTES:
            raise ValueError(
                f"the token has {len(token)} bytes, and a gateway accepts at most {TOKEN_MAX_BYTES}: leave claims out"
            )
        return token


def _identity(value: object) -> str | int:
    """Check an identity as a gateway does."""
    if isinstance(value, int) and not isinstance(value, bool):
        _checked_json("the identity", value)
        return value
    if not isinstance(value, str):
        raise TypeError(f"the identity is {type(value).__name__}, not a text or an integer: pass a UUID as str()")
    if _INTEGER_TEXT(value):
        raise ValueError("the identity is a text like ~7, which is reserved for the integer 7: pass the integer")
    return _text("the identity", value)


def _text(what: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} is {type(value).__name__}, not a text")
    if not value.isprintable() or not 0 < len(value.encode()) <= TEXT_MAX_BYTES:  # excludes lone surrogates too
        raise ValueError(f"{what} must be a text of 1 to {TEXT_MAX_BYTES} bytes without control characters")
    return value


def _setting(what: str, value: str) -> str:
    if _text(what, value) != value.strip():
        raise ValueError(f"{what} has spaces around it")
    return value


def _lifetime(seconds: object) -> float:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"expires_in_s is {type(seconds).__name__}, not a number of seconds")
    if not 1 <= seconds <= LIFETIME_MAX_S:  # not a number is refused too
        raise ValueError(f"expires_in_s must be from 1 to {LIFETIME_MAX_S} (366 days)")
    return float(seconds)


def _mapping(what: str, value: object) -> Mapping[Any, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{what}: {type(value).__name__} is not a mapping")
    return value


def _checked_json(what: str, value: object) -> object:
    """Return a value that is JSON. Raises TypeError, ValueError: it is not."""
    try:
        encode(value)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{what}: {error}") from None
    return value


def _service(name: object) -> str:
    if not isinstance(name, str) or not _SERVICE(name):
        raise ValueError("a service's name has a-z, 0-9, _ and - only")
    return name


def _operations_of(service: str) -> tuple[str, ...]:
    return _PUBSUB if service == PUBSUB else _ALL


def _permissions(what: str, written: object, known: tuple[str, ...]) -> dict[str, list[str]]:
    """Check {PATTERN: [OPERATION, ...]}, and copy it."""
    found = {}
    for pattern, operations in _mapping(what, written).items():
        if not isinstance(pattern, str):
            raise TypeError(f"{what}: a pattern is {type(pattern).__name__}, not a text")
        if not 0 < len(pattern) <= PATTERN_MAX or any(character < " " for character in pattern):
            raise ValueError(f"{what}: a pattern has 1 to {PATTERN_MAX} characters, and no control characters")
        if _PLACEHOLDER(pattern):
            raise ValueError(
                f"{what}: {pattern!r} has a placeholder, which permits nothing in a token; write the value"
            )
        found[pattern] = _operations(f"{what}: {pattern!r}", operations, known)
    return found


def _operations(what: str, written: object, known: tuple[str, ...]) -> list[str]:
    if not isinstance(written, list | tuple) or not written:
        raise TypeError(f"{what}: write a list of operations, as in [{known[0]!r}]")
    for operation in written:
        if operation not in known:
            raise ValueError(f"{what}: unknown operation {operation!r:.60}; known are {', '.join(known)}")
    return list(written)
