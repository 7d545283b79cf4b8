"""Keys that sign tokens, with the checks that a gateway makes for its own keys ([auth] in its settings).

    HS256   a secret that the gateway shares: 32 bytes or more, not easy to guess, not a PEM
    RS256   an RSA key of 2048 bits or more
    ES256   a key of the curve P-256

The algorithm follows from the key. The text of each ValueError is a sentence for people; none quotes a key.
"""

import math
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final

__all__ = ["SigningKey"]

SECRET_MIN_BYTES: Final = 32  # RFC 7518 3.2: at least as long as the hash
SECRET_MIN_BITS: Final = 64  # of entropy; guessing at 16,000/s for 18 million years
RSA_MIN_BITS: Final = 2048  # RFC 7518 3.3
KEY_ID_MAX_BYTES: Final = 255

_MAKE: Final = "make one with: openssl rand -hex 32"
_INVISIBLE: Final = ("Cc", "Cf", "Cs", "Zl", "Zp")  # categories of Unicode


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key, its algorithm, and its key id for the token's header (None: the header has none)."""

    algorithm: str
    key: Any = field(repr=False)
    key_id: str | None = None

    @classmethod
    def hmac(cls, secret: str, key_id: str | None = None) -> "SigningKey":
        """Make a key for HS256. Raises ValueError: a gateway would refuse the secret; TypeError: not a text."""
        _check_secret(secret)
        return cls("HS256", secret.encode(), _checked(key_id))

    @classmethod
    def private(cls, pem: str | bytes, key_id: str | None = None) -> "SigningKey":
        """Make a key for RS256 or ES256 of a private key in PEM form, not encrypted.

        Raises ValueError: another kind of key, or too short; TypeError: neither text nor bytes; ImportError:
        `cryptography` is missing.
        """
        key = _load(pem)
        return cls(_algorithm_of(key), key, _checked(key_id))

    def sign(self, payload: bytes) -> str:
        """Sign a payload, UTF-8 JSON, and return the token. Raises ImportError: PyJWT is missing."""
        try:
            from jwt import PyJWS
        except ImportError as error:
            raise _missing() from error
        headers = None if self.key_id is None else {"kid": self.key_id}
        # not jwt.encode: its later versions refuse integers as `sub`
        return PyJWS().encode(payload, self.key, algorithm=self.algorithm, headers=headers)


def _missing() -> ImportError:
    return ImportError("Signer needs PyJWT and cryptography: pip install 'snorky-client[tokens]'")


def _checked(key_id: str | None) -> str | None:
    if key_id is None:
        return None
    if not isinstance(key_id, str):
        raise TypeError(f"key_id is {type(key_id).__name__}, not a text")
    if not key_id.isprintable() or not 0 < len(key_id.encode()) <= KEY_ID_MAX_BYTES:
        raise ValueError(f"key_id must be a text of 1 to {KEY_ID_MAX_BYTES} bytes without control characters")
    return key_id


def _check_secret(secret: str) -> None:
    if not isinstance(secret, str):
        raise TypeError(f"hmac_secret is {type(secret).__name__}, not a text")
    if len(secret.encode("utf-8", "replace")) < SECRET_MIN_BYTES:
        raise ValueError(f"hmac_secret has less than {SECRET_MIN_BYTES} bytes; {_MAKE}")
    if secret.lstrip().startswith("-----BEGIN"):
        raise ValueError("hmac_secret is a PEM: anyone who knows a public key could sign with it; pass private_key")
    if secret != secret.strip():
        raise ValueError(
            "hmac_secret has spaces or line ends around it, which the gateway's copy may lack; remove them: .strip()"
        )
    for position, character in enumerate(secret, start=1):
        category = unicodedata.category(character)
        if category in _INVISIBLE or (category == "Zs" and character != " "):
            raise ValueError(
                f"hmac_secret has an invisible character, U+{ord(character):04X}, at position {position}; "
                "write it again by hand, or make a new one"
            )
    if _is_easy_to_guess(secret):
        raise ValueError(f"hmac_secret is too easy to guess (short, or few characters repeated); {_MAKE}")


def _is_easy_to_guess(text: str) -> bool:
    """Measure the entropy of the characters, as the gateway does; of a repeated part only one copy counts."""
    period = (text + text).find(text, 1)  # the length of the repeated part; of the whole text if nothing repeats
    part = text[:period] if period * 2 <= len(text) else text
    total = len(part)
    bits = -sum(count * math.log2(count / total) for count in Counter(part).values())
    steps = {ord(after) - ord(before) for before, after in pairwise(part)}
    return bits < SECRET_MIN_BITS or len(steps) == 1  # abcdef... has one step


def _load(pem: str | bytes) -> Any:
    if not isinstance(pem, str | bytes):
        raise TypeError(f"private_key is {type(pem).__name__}, not the text of a PEM")
    data = pem.encode("utf-8", "replace") if isinstance(pem, str) else pem
    if b"-----BEGIN" not in data:
        raise ValueError(
            'private_key is no PEM ("-----BEGIN PRIVATE KEY-----..."); pass the content, not the file name'
        )
    if b"PUBLIC KEY-----" in data and b"PRIVATE KEY-----" not in data:
        raise ValueError("private_key is a public key, which cannot sign; pass the private one")
    try:
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError as error:
        raise _missing() from error
    if b"ENCRYPTED" in data:
        raise ValueError("private_key is encrypted; pass it decrypted, as by: openssl pkey -in KEY.pem")
    try:
        return load_pem_private_key(data, password=None)
    except Exception:  # OpenSSL's errors share no base class, and their text may quote the key
        raise ValueError("private_key is damaged, or of an unsupported kind") from None


def _algorithm_of(key: Any) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, rsa

    if isinstance(key, rsa.RSAPrivateKey):
        if key.key_size < RSA_MIN_BITS:
            raise ValueError(f"private_key is an RSA key below {RSA_MIN_BITS} bits")
        return "RS256"
    if isinstance(key, ec.EllipticCurvePrivateKey) and isinstance(key.curve, ec.SECP256R1):
        return "ES256"
    raise ValueError("private_key is neither an RSA key nor one of the curve P-256")
