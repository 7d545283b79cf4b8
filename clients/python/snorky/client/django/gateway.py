"""Calls to the gateway that the Django settings name: publish deltas, authorize subscriptions.

Settings are read at each call, so tests may override them.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.dispatch import Signal
from django.utils.module_loading import import_string

from snorky.client.backend import SnorkyBackend
from snorky.client.errors import SnorkyError, TransportError
from snorky.client.http.transport import SnorkyHTTPTransport

__all__ = ["authorize_subscription", "configured_backend", "deltas_lost", "publish_now", "snapshot"]

TIMEOUT_S: Final = 5.0  # a browser's request waits for the call
CALL_VALUES_MAX: Final = 4000  # a gateway accepts 10,000 JSON values in a message
_ENCODER: Final = "django.core.serializers.json.DjangoJSONEncoder"

# Sent with `deltas` and `error` when the gateway did not accept committed deltas; the browser's request continues.
deltas_lost = Signal()

_log = logging.getLogger("snorky.django")


class _EncoderJson:
    """JSON by an encoder class, so that dates, decimals and UUIDs look as in Django's own responses."""

    def __init__(self, encoder: type[json.JSONEncoder]) -> None:
        self._encoder = encoder

    def dumps(self, value: Any, /) -> str:
        return json.dumps(value, cls=self._encoder, allow_nan=False)

    def loads(self, text: str, /) -> Any:
        return json.loads(text)


@lru_cache(maxsize=4)
def _backend(url: str, key: str | None, timeout_s: float, encoder: str) -> SnorkyBackend:
    try:
        return SnorkyBackend(SnorkyHTTPTransport(url, key, timeout_s), _EncoderJson(import_string(encoder)))
    except ValueError as error:
        raise ImproperlyConfigured(f"SNORKY_BACKEND_URL, SNORKY_BACKEND_KEY or SNORKY_TIMEOUT_S: {error}") from error


def configured_backend() -> SnorkyBackend | None:
    """Return the backend that the settings name; None if SNORKY_BACKEND_URL is None. Raises ImproperlyConfigured."""
    if not hasattr(settings, "SNORKY_BACKEND_URL"):
        raise ImproperlyConfigured("set SNORKY_BACKEND_URL to the gateway's /backend, or to None to publish nothing")
    if settings.SNORKY_BACKEND_URL is None:
        return None
    key = getattr(settings, "SNORKY_BACKEND_KEY", getattr(settings, "SNORKY_API_KEY", None))
    timeout_s = getattr(settings, "SNORKY_TIMEOUT_S", TIMEOUT_S)
    return _backend(settings.SNORKY_BACKEND_URL, key, timeout_s, _encoder())


def snapshot(value: Any) -> Any:
    """Copy a value as plain JSON, so that later changes have no effect. Raises TypeError, ValueError: not JSON."""
    encoder = _EncoderJson(import_string(_encoder()))
    return encoder.loads(encoder.dumps(value))


def authorize_subscription(items: Sequence[Any]) -> str:
    """Return a token with which one client may subscribe, within 120 s, to [{"dealer": NAME, "query": ANY}, ...].

    Query the database after this call, not before: the client then receives every change since. Raises SnorkyError: no
    such dealer, for example; TransportError: the gateway does not reply, or SNORKY_BACKEND_URL is None.
    """
    backend = configured_backend()
    if backend is None:
        raise TransportError("SNORKY_BACKEND_URL is None", "unreachable", may_have_happened=False)
    token = backend.call(_service(), "authorizeSubscription", items=list(items))
    if not isinstance(token, str) or not (token.isascii() and token.isprintable()):
        raise TransportError("Invalid reply: not a token", "invalid_reply", may_have_happened=True)
    return token


def publish_now(deltas: Sequence[Any]) -> None:
    """Publish deltas, in order. Those that the gateway does not accept are logged and sent by `deltas_lost`."""
    backend = configured_backend()
    if backend is None:
        return
    lost: list[Any] = []
    failure: SnorkyError | TransportError | None = None
    for part in _parts(deltas):
        if isinstance(failure, TransportError) and failure.status is None:
            lost += part  # the gateway does not respond: do not wait for each further part
            continue
        try:
            backend.call(_service(), "publishDeltas", deltas=part)
        except (SnorkyError, TransportError) as error:
            failure = error
            lost += part
    if failure is not None:
        _log.error("%d deltas were committed and not published: %s (%s)", len(lost), failure, failure.code)
        deltas_lost.send_robust(sender=None, deltas=lost, error=failure)


def _parts(deltas: Sequence[Any]) -> Iterator[list[Any]]:
    """Split deltas into parts of one call each."""
    part: list[Any] = []
    part_values = 0
    for delta in deltas:
        values = _count(delta)
        if part and part_values + values > CALL_VALUES_MAX:
            yield part
            part, part_values = [], 0
        part.append(delta)
        part_values += values
    if part:
        yield part


def _count(value: Any) -> int:
    """Count JSON values, keys included."""
    if isinstance(value, dict):
        return 1 + sum(1 + _count(each) for each in value.values())
    if isinstance(value, list):
        return 1 + sum(map(_count, value))
    return 1


def _service() -> str:
    return getattr(settings, "SNORKY_DATASYNC_SERVICE", "datasync_backend")


def _encoder() -> str:
    return getattr(settings, "SNORKY_JSON_ENCODER", _ENCODER)
