"""[auth]: how clients' tokens are verified. At most one kind of key is set; it fixes the accepted algorithm.

    hmac_secret   HS256: a service that can verify tokens can also sign them
    public_key    RS256 or ES256, depending on the type of key
    jwks_url      RS256 and ES256 keys, looked up by their key id

The algorithm never comes from the token's header (RFC 8725 3.1): it follows from the key.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from msgspec import Meta

from snorky.gateway.config.parsers import parse_https_url
from snorky.gateway.config.secrets import parse_signing_secret

__all__ = ["Auth", "PublicKey", "algorithm_of"]

RSA_MIN_BITS: Final = 2048  # RFC 7518 3.3

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def algorithm_of(key: object) -> str:
    """Return the JWT algorithm for a public key. Raises ValueError: an unsupported type of key, or a weak key."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_MIN_BITS:
            raise ValueError(f"is an RSA key below {RSA_MIN_BITS} bits")
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    raise ValueError("is neither an RSA key nor one of the curve P-256")


def _parse_secret(value: str) -> bytes:
    if value.lstrip().startswith("-----BEGIN"):
        raise ValueError("is a PEM: anyone who knows a public key could sign with it; write it as public_key")
    return parse_signing_secret(value)


def _parse_public_key(value: str) -> PublicKey:
    if "PRIVATE KEY" in value:
        raise ValueError("is a private key; write the public one: openssl pkey -in KEY.pem -pubout")
    try:
        key = load_pem_public_key(value.encode())
    except Exception:  # OpenSSL's errors share no base class, and their text may quote the value
        raise ValueError('is no public key in PEM form ("-----BEGIN PUBLIC KEY-----...")') from None
    try:
        algorithm_of(key)
    except ValueError as error:
        raise ValueError(f"{error}; take RSA of {RSA_MIN_BITS} bits or more, or P-256") from None
    assert isinstance(key, PublicKey)  # noqa: S101 - for the type checker: algorithm_of accepted it
    return key


def _parse_url(value: str) -> str:
    return parse_https_url(value, "the keys found there can sign tokens")


def _parse_function(value: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", value):
        raise ValueError('must be "module:function", an async function of the request')
    return value


def _parse_text(value: str) -> str:
    if not value or value != value.strip():
        raise ValueError("is empty or has spaces around it")
    return value


def _parsed(default: Any, parse: Callable[[str], Any]) -> Any:
    return field(default=default, repr=False, metadata={"wire": str, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """[auth]: how clients are identified. By default, no client has an identity."""

    hmac_secret: bytes | None = _parsed(None, _parse_secret)
    hmac_secret_previous: bytes | None = _parsed(None, _parse_secret)  # also accepted, while the secret is replaced
    unsafe_hmac_secret: str = _parsed("", _parse_text)  # of any length; its tokens need no `exp`; only --insecure
    public_key: PublicKey | None = _parsed(None, _parse_public_key)  # noqa: RUF009 - it is `dataclasses.field`
    public_key_previous: PublicKey | None = _parsed(None, _parse_public_key)  # noqa: RUF009 - as above
    jwks_url: str = _parsed("", _parse_url)
    audience: str | None = _parsed(None, _parse_text)  # required "aud"; None: a token with an "aud" is refused
    issuer: str | None = _parsed(None, _parse_text)
    identity_claim: str = _parsed("sub", _parse_text)
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 5.0  # allowed clock difference between issuer and node
    token_max_lifetime_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 30 * 86_400.0  # see `Verifier`
    identify_hook: str = _parsed("", _parse_function)  # the operator's function, e.g. one that reads a session cookie
    required: bool = False  # unauthenticated clients may only authenticate
    timeout_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0  # time to authenticate if `required`; then closed 4502

    @property
    def has_keys(self) -> bool:
        """True if tokens can be verified."""
        return any((self.hmac_secret, self.unsafe_hmac_secret, self.public_key, self.jwks_url))

    @property
    def is_configured(self) -> bool:
        """True if clients can have identities."""
        return self.has_keys or bool(self.identify_hook) or self.required

    def problems(self, *, has_connect_hook: bool = False) -> list[str]:
        """Return one text for each contradiction, with the remedy. has_connect_hook: [hooks.connect] has a URL."""
        found = []
        names = ("hmac_secret", "unsafe_hmac_secret", "public_key", "jwks_url")
        keys = {name: getattr(self, name) for name in names}
        written = [name for name, value in keys.items() if value]
        if len(written) > 1:
            found.append(f"[auth] {' and '.join(written)} are both set: keep one and remove the others")
        for name in ("hmac_secret", "public_key"):
            if getattr(self, f"{name}_previous") and not getattr(self, name):
                found.append(f"[auth] {name}_previous is set without {name}: write the new one as {name}")
        if not written and (self.audience or self.issuer or self.identity_claim != "sub"):
            found.append(
                "[auth] audience, issuer and identity_claim mean nothing without a key: "
                "write hmac_secret, public_key or jwks_url"
            )
        if self.identity_claim in ("channel", "exp"):
            found.append(f"[auth] identity_claim = {self.identity_claim} has another meaning: write another claim")
        if self.required and not written and not self.identify_hook and not has_connect_hook:
            found.append(
                "[auth] required = true, but no way to authenticate is set: "
                'write hmac_secret, public_key or jwks_url, identify_hook = "module:function", or [hooks.connect] url'
            )
        return found
