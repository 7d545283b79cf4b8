"""Verify tokens (JWT, RFC 7519) and return identities. Pure: the caller provides keys and clock.

Rules (RFC 8725):
- The algorithm follows from the key; the token's header must name the same one. So a public key is never used as an
  HMAC secret, and `none` is never accepted.
- Keys come from the settings, never from the token: `jwk`, `jku`, `x5u`, `x5c` are ignored. A token with a header that
  changes how it must be processed (`crit`, `b64`) is refused.
- `exp` is required, and must not be later than revocations are kept. (Not with `unsafe_hmac_secret`, for test suites.)
- The client learns only that its token is invalid or expired; the exact reason is only in the metrics.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Protocol

import jwt

from snorky.gateway.config.auth import Auth, PublicKey, algorithm_of
from snorky.gateway.connection.connection import NO_CLAIMS
from snorky.gateway.errors import CloseCode, InvalidChannel, InvalidToken
from snorky.gateway.protocol.codec import channel_name
from snorky.gateway.protocol.identities import IDENTITY_MAX_BYTES, identity_text

__all__ = [
    "IDENTITY_MAX_BYTES",
    "FixedKey",
    "Identity",
    "Key",
    "Keys",
    "SubscriptionToken",
    "Verifier",
    "check_identity",
]

TOKEN_MAX_BYTES: Final = 8192  # fits into an HTTP header
TOKEN_ID_MAX_BYTES: Final = 255
PUBSUB: Final = "pubsub"  # the service of a subscription token that names none
READING: Final = ("subscribe", "history", "presence")  # what a subscription token permits that does not say it

# PyJWT's exceptions -> a reason for metrics; the first match counts
_REASONS: Final[tuple[tuple[type[Exception], str], ...]] = (
    (jwt.ExpiredSignatureError, "expired"),
    (jwt.ImmatureSignatureError, "not_yet_valid"),
    (jwt.InvalidAudienceError, "audience"),
    (jwt.InvalidIssuerError, "issuer"),
    (jwt.MissingRequiredClaimError, "claim"),
    (jwt.InvalidSignatureError, "signature"),
    (jwt.InvalidAlgorithmError, "algorithm"),
)


@dataclass(frozen=True, slots=True)
class Identity:
    """A verified identity, when it expires, and its token. Times are wall-clock seconds. claims: all of the token."""

    identity: str
    expires_at_s: float = math.inf
    token_id: str | None = None
    valid_since_s: float = 0.0  # only later revocations of this identity apply
    claims: Mapping[str, Any] = field(default_factory=lambda: NO_CLAIMS, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class SubscriptionToken:
    """A verified token that permits operations on one channel of a service. Times are wall-clock seconds.

    identity: of the client that may use it; None: clients without an identity. channel: its name. token_id,
    valid_since_s: as of an Identity. info: any JSON value, for services.
    """

    identity: str | None
    service: str
    channel: str
    operations: frozenset[str]
    expires_at_s: float
    token_id: str | None = None
    valid_since_s: float = 0.0
    info: Any = None


@dataclass(frozen=True, slots=True)
class Key:
    """A key and the one algorithm that it is used with."""

    algorithm: str
    key: bytes | PublicKey = field(repr=False)
    previous: "Key | None" = None  # of the same algorithm: while keys are replaced, tokens may be signed with either

    @classmethod
    def public(cls, key: PublicKey) -> "Key":
        """Make a Key of a public key. Raises ValueError: an unsupported type of key, or a weak key."""
        return cls(algorithm_of(key), key)


class Keys(Protocol):
    """A source of keys."""

    async def find(self, key_id: str | None, algorithm: str) -> Key:
        """Return the key for a token. Raises InvalidToken: unknown key; BrokerUnavailable: keys cannot be fetched."""


class FixedKey:
    """The key of the settings, and optionally the previous one; the token's key id is ignored."""

    def __init__(self, key: Key, previous: Key | None = None) -> None:
        self._key = key
        self._other = None
        if previous is not None and previous.algorithm == key.algorithm:
            self._key = Key(key.algorithm, key.key, previous)
        else:
            self._other = previous

    async def find(self, key_id: str | None, algorithm: str) -> Key:
        """Return the key of this algorithm, else the current key: verification then fails."""
        other = self._other
        return other if other is not None and other.algorithm == algorithm else self._key


class Verifier:
    """Verifies tokens and returns their identities.

    auth: audience, issuer, claim, leeway and token_max_lifetime_s. The last limits how long a token may remain
    valid, so that revocations can be deleted after that time.
    """

    def __init__(self, keys: Keys, auth: Auth | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._keys = keys
        self._auth = auth or Auth()
        self._clock = clock
        claim = self._auth.identity_claim
        # PyJWT refuses an integer as `sub`; `check_identity` checks the claim instead
        expiry = [] if self._auth.unsafe_hmac_secret else ["exp"]
        self._options: Any = {"require": [*expiry, claim], "verify_sub": False}
        self._channel_options: Any = {"require": expiry, "verify_sub": False}

    async def verify(self, token: str) -> Identity:
        """Verify a token. Raises InvalidToken; BrokerUnavailable: the keys cannot be fetched now."""
        return self._identity(await self._claims(token, self._options))

    async def verify_subscription(self, token: str) -> SubscriptionToken:
        """Verify a token that permits one channel. Raises as `verify`."""
        claims = await self._claims(token, self._channel_options)
        if "channel" not in claims:  # its value may be null
            raise InvalidToken("claim")
        expires_at_s, valid_since_s = self._times(claims)
        identity, operations = claims.get(self._auth.identity_claim), claims.get("ops", list(READING))
        service = claims.get("service", PUBSUB)
        is_list = isinstance(operations, list) and all(isinstance(each, str) for each in operations)
        if not is_list or not isinstance(service, str):
            raise InvalidToken("claim")
        try:
            channel = channel_name(claims["channel"])
        except InvalidChannel:
            raise InvalidToken("claim") from None
        return SubscriptionToken(
            None if identity is None else check_identity(identity),
            service,
            channel,
            frozenset(operations),
            expires_at_s,
            _token_id(claims),
            valid_since_s,
            claims.get("info"),
        )

    async def _claims(self, token: str, options: Any) -> dict[str, Any]:
        key_id, algorithm = _header(token)
        key = await self._keys.find(key_id, algorithm)
        if algorithm != key.algorithm:
            raise InvalidToken("algorithm")
        try:
            return self._decoded(token, key, options)
        except InvalidToken as error:
            if error.reason != "signature" or key.previous is None:
                raise
            return self._decoded(token, key.previous, options)

    def _decoded(self, token: str, key: Key, options: Any) -> dict[str, Any]:
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.key,  # compared in constant time by `hmac` and OpenSSL
                algorithms=[key.algorithm],
                audience=self._auth.audience,
                issuer=self._auth.issuer,
                leeway=self._auth.leeway_s,
                options=options,
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError) as error:
            # from None: PyJWT's text may quote the token
            reason = next((reason for kind, reason in _REASONS if isinstance(error, kind)), "malformed")
            raise _refused(reason) from None
        return claims

    def _identity(self, claims: dict[str, Any]) -> Identity:
        if "channel" in claims:  # permits one channel, and is no login
            raise InvalidToken("subscription_token")
        expires_at_s, valid_since_s = self._times(claims)
        return Identity(
            check_identity(claims[self._auth.identity_claim]),
            expires_at_s=expires_at_s,
            token_id=_token_id(claims),
            valid_since_s=valid_since_s,
            claims=MappingProxyType(claims),
        )

    def _times(self, claims: dict[str, Any]) -> tuple[float, float]:
        """Return until when a token is valid, and since when. Raises InvalidToken: valid for too long."""
        expires_at_s = _seconds(claims, "exp") if "exp" in claims else math.inf
        if expires_at_s == math.inf and self._auth.unsafe_hmac_secret:
            return math.inf, -math.inf
        if expires_at_s - self._clock() > self._auth.token_max_lifetime_s:
            raise InvalidToken("lifetime")
        issued_at_s = _seconds(claims, "iat") if "iat" in claims else -math.inf
        # the issuer's clock may be ahead: a token issued just before a revocation may have a later `iat`
        return expires_at_s, issued_at_s - self._auth.leeway_s


def _token_id(claims: dict[str, Any]) -> str | None:
    """Return a token's id. Raises InvalidToken: too long for `revokeToken`."""
    token_id: str | None = claims.get("jti")  # PyJWT has checked its type
    if token_id is not None and len(token_id.encode(errors="surrogatepass")) > TOKEN_ID_MAX_BYTES:
        raise InvalidToken("claim")
    return token_id


def _refused(reason: str) -> InvalidToken:
    if reason == "not_yet_valid":  # clocks differ: another node may accept the token, or this one later
        return InvalidToken(reason, "Token not valid yet", close_code=CloseCode.RECONNECT)
    return InvalidToken(reason, "Token expired" if reason == "expired" else "Invalid token")


def check_identity(value: object) -> str:
    """Convert an identity, a string or an integer, to a string. Raises InvalidToken."""
    try:
        return identity_text(value)
    except ValueError:
        raise InvalidToken("identity") from None


def _header(token: str) -> tuple[str | None, str]:
    """Read a token's key id and algorithm, both unverified. Raises InvalidToken."""
    if len(token) > TOKEN_MAX_BYTES:
        raise InvalidToken("too_long")
    if not token.isascii():
        raise InvalidToken("malformed")
    try:
        header = jwt.get_unverified_header(token)
    except (jwt.PyJWTError, ValueError, TypeError, RecursionError):
        raise InvalidToken("malformed") from None
    key_id, algorithm = header.get("kid"), header.get("alg")
    if not isinstance(algorithm, str) or not isinstance(key_id, str | None) or "crit" in header or "b64" in header:
        raise InvalidToken("malformed")
    return key_id, algorithm


def _seconds(claims: dict[str, Any], name: str) -> float:
    """Read a claim that is a NumericDate (RFC 7519 2)."""
    value = claims[name]
    try:
        seconds = math.inf if isinstance(value, bool) or not isinstance(value, int | float) else float(value)
    except OverflowError:
        seconds = math.inf
    if not math.isfinite(seconds):
        raise InvalidToken("claim")
    return seconds
