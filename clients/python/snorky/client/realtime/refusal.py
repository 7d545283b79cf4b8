"""Refusal: why a connection could not be opened, and whether trying again can help.

result                                               trying again can help (`can_heal`)
no server, timeout, closed without a response        yes
HTTP 408, 425, 429, 5xx                              yes, after the time in Retry-After
another HTTP status: a wrong URL, a refused origin   no
an invalid certificate, no TLS, no HTTP              no
arguments that `websockets.connect` does not accept  no
"""

import ssl
from dataclasses import dataclass
from typing import Any, Final

from snorky.client.errors import TransportError

__all__ = ["Refusal", "refusal_of"]

TEXT_MAX: Final = 200  # characters of a server's text
RETRY_AFTER_MAX_S: Final = 300.0
_PASSING: Final = frozenset({408, 425, 429})
# The server closed the connection during the TLS handshake: it may have crashed.
_CUT: Final = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no connection. status: the HTTP status, None = no response. retry_after_s: from Retry-After."""

    text: str
    can_heal: bool = True
    status: int | None = None
    retry_after_s: float = 0.0

    def error(self, text: str) -> TransportError:
        """Return the error of a request that was not sent for lack of a connection."""
        return TransportError(f"{text}: {self.text}", "unreachable", may_have_happened=False, status=self.status)


def refusal_of(error: Exception) -> Refusal:
    """Classify an error of `websockets.connect`."""
    from websockets.exceptions import InvalidMessage, ProxyError, WebSocketException

    text = f"{type(error).__name__}: {error}"[:TEXT_MAX]
    if (response := getattr(error, "response", None)) is not None:  # from the server or a proxy
        return _of_status(response)
    if isinstance(error, ssl.SSLError):
        return Refusal(f"no TLS: {text}", can_heal=isinstance(error, _CUT))
    if isinstance(error, (OSError, EOFError)):  # TimeoutError is an OSError
        return Refusal(text)
    if isinstance(error, InvalidMessage):
        is_cut = isinstance(error.__cause__, EOFError)
        return Refusal("the connection ended before an answer" if is_cut else f"no answer in HTTP: {text}", is_cut)
    if isinstance(error, ProxyError):
        return Refusal(text, can_heal=not isinstance(error.__cause__, ValueError))
    if isinstance(error, WebSocketException):
        return Refusal(f"no WebSocket there: {text}", can_heal=False)
    return Refusal(text, can_heal=False)


def _of_status(response: Any) -> Refusal:
    status: int = response.status_code
    said = response.reason_phrase
    if response.body and response.headers.get("Content-Type", "").startswith("text/plain"):
        said = bytes(response.body).decode("utf-8", "replace").strip().partition("\n")[0]
        said = said.removeprefix(f"{status}: ")
    if 300 <= status < 400:
        said = f"it redirects, which is not followed, to {response.headers.get('Location', 'nowhere')}"
    said = "".join(each if each.isprintable() else "?" for each in said[:TEXT_MAX])
    return Refusal(
        f"HTTP {status}: {said}",
        can_heal=status in _PASSING or status >= 500,
        status=status,
        retry_after_s=_seconds(response.headers.get("Retry-After", "")),
    )


def _seconds(text: str) -> float:
    """Parse Retry-After; only a number of seconds counts, not a date."""
    if not (text.isascii() and text.isdigit() and len(text) < 9):
        return 0.0
    return min(float(text), RETRY_AFTER_MAX_S)
