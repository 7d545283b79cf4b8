"""The signature of a hook's request: HMAC-SHA256 over the time and the body, by the secret of the settings."""

import hashlib
import hmac
from typing import Final

__all__ = ["SIGNATURE_HEADER", "signature"]

SIGNATURE_HEADER: Final = "X-Snorky-Signature"


def signature(secret: bytes, body: bytes, at_s: int) -> str:
    """Return the header's value. at_s: wall-clock seconds; the backend refuses old ones, against copied requests."""
    digest = hmac.new(secret, f"{at_s}.".encode() + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"
