"""[auth]: whose tokens are taken. One way to verify them, and with it the one algorithm that there is.

    hmac_secret   HS256: whoever verifies could also sign
    public_key    RS256 or ES256, by the kind of key
    jwks_url      RS256 and ES256 keys, found by their id

Which algorithm a token is signed with is never the token's to say (RFC 8725 3.1): it follows from the key.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from msgspec import Meta

from gateway.secret_values import check_strength
from gateway.setting_values import is_loopback

__all__ = ["Auth", "PublicKey", "algorithm_of"]

SECRET_MIN_BYTES: Final = 32  # RFC 7518 3.2: at least as long as the hash
RSA_MIN_BITS: Final = 2048  # RFC 7518 3.3

PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def algorithm_of(key: object) -> str:
    """Tell the algorithm that a public key verifies. Raises ValueError: none of ours, or too weak."""
    if isinstance(key, rsa.RSAPublicKey):
        if key.key_size < RSA_MIN_BITS:
            raise ValueError(f"is an RSA key below {RSA_MIN_BITS} bits")
        return "RS256"
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    raise ValueError("is neither an RSA key nor one of the curve P-256")


def _parse_secret(value: str) -> bytes:
    secret = value.encode()
    if len(secret) < SECRET_MIN_BYTES:
        raise ValueError(f"has less than {SECRET_MIN_BYTES} bytes; make one with: openssl rand -hex 32")
    if secret.lstrip().startswith(b"-----BEGIN"):
        raise ValueError("is a PEM: a public key as a secret lets everybody sign; write it as public_key")
    if value != value.strip():
        raise ValueError("has blanks or line ends around it, which the signer's may not have; take them out")
    check_strength(value)
    return secret


def _parse_public_key(value: str) -> PublicKey:
    if "PRIVATE KEY" in value:
        raise ValueError("is a private key; give the public one: openssl pkey -in KEY.pem -pubout")
    try:
        key = load_pem_public_key(value.encode())
    except Exception:  # OpenSSL's errors have no common type, and the text may quote the value
        raise ValueError('is no public key in PEM form ("-----BEGIN PUBLIC KEY-----...")') from None
    try:
        algorithm_of(key)
    except ValueError as error:
        raise ValueError(f"{error}; take RSA of {RSA_MIN_BITS} bits or more, or P-256") from None
    assert isinstance(key, PublicKey)  # noqa: S101 - a fact for the type checker: it has an algorithm
    return key


def _parse_url(value: str) -> str:
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme == "http" and is_loopback(parts.hostname or ""):
        return value
    if parts.scheme != "https" or not parts.hostname:
        raise ValueError("must begin with https:// (http:// only on loopback): who answers there says who may sign")
    return value


def _parse_function(value: str) -> str:
    if not re.fullmatch(r"[\w.]+:\w+", value):
        raise ValueError('must be "module:function", an async function of the request')
    return value


def _parse_text(value: str) -> str:
    if not value or value != value.strip():
        raise ValueError("is empty or has blanks around it")
    return value


def _parsed(default: Any, parse: Callable[[str], Any]) -> Any:
    return field(default=default, repr=False, metadata={"wire": str, "parse": parse})


@dataclass(frozen=True, slots=True, kw_only=True)
class Auth:
    """[auth]: who may say who they are, and how. Nothing written: nobody has an identity."""

    hmac_secret: bytes | None = _parsed(None, _parse_secret)
    hmac_secret_previous: bytes | None = _parsed(None, _parse_secret)  # while the secret is being changed
    public_key: PublicKey | None = _parsed(None, _parse_public_key)  # noqa: RUF009 - it is `dataclasses.field`
    public_key_previous: PublicKey | None = _parsed(None, _parse_public_key)  # noqa: RUF009 - as above
    jwks_url: str = _parsed("", _parse_url)
    audience: str | None = _parsed(None, _parse_text)  # a token's must match; without it there must be none
    issuer: str | None = _parsed(None, _parse_text)
    identity_claim: str = _parsed("sub", _parse_text)
    leeway_s: Annotated[float, Meta(ge=0, le=300)] = 5.0  # how much the clocks of issuer and node may differ
    lifetime_max_s: Annotated[float, Meta(gt=0, le=366 * 86_400)] = 30 * 86_400.0  # see `Verifier`
    identify: str = _parsed("", _parse_function)  # a way of one's own: a session cookie, say
    required: bool = False  # who has no identity may only get one
    deadline_s: Annotated[float, Meta(gt=0, le=3600)] = 5.0  # for that; then closed 4502

    @property
    def has_keys(self) -> bool:
        """True if tokens can be verified."""
        return self.hmac_secret is not None or self.public_key is not None or bool(self.jwks_url)

    def problems(self) -> list[str]:
        """Say what does not go together, and the way out."""
        found = []
        keys = {"hmac_secret": self.hmac_secret, "public_key": self.public_key, "jwks_url": self.jwks_url}
        written = [name for name, value in keys.items() if value]
        if len(written) > 1:
            found.append(f"[auth] {' and '.join(written)} are both set: one way to verify tokens; take the others out")
        for name in ("hmac_secret", "public_key"):
            if getattr(self, f"{name}_previous") and not getattr(self, name):
                found.append(f"[auth] {name}_previous is set without {name}: write the new one as {name}")
        if not written and (self.audience or self.issuer or self.identity_claim != "sub"):
            found.append(
                "[auth] audience, issuer and identity_claim mean nothing without a key: "
                "write hmac_secret, public_key or jwks_url"
            )
        if self.required and not written and not self.identify:
            found.append(
                "[auth] required = true, and nobody could be authenticated: "
                'write hmac_secret, public_key or jwks_url, or identify = "module:function"'
            )
        return found
