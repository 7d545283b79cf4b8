"""Messages to channels, published through Redis when the current transaction is committed.

publish_on_commit("orders", {"id": order.pk, "state": order.state})

Settings: SNORKY_REDIS_URL, and more in the README. Needs redis-py: snorky-client[redis].
"""

import logging
import secrets
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.dispatch import Signal

from snorky.client.django.gateway import snapshot
from snorky.client.django.outbox import wait_for_commit
from snorky.client.errors import PublishManyError
from snorky.client.publication import Publication, Sending
from snorky.client.redis.publisher import Publisher

__all__ = ["configured_publisher", "publications_lost", "publish_on_commit"]

TIMEOUT_S: Final = 5.0  # a browser's request waits for the publication

# Sent with `publications` and `error` when Redis did not confirm publications after a commit. It is safe to publish
# them again under their keys.
publications_lost = Signal()

_log = logging.getLogger("snorky.django")


@lru_cache(maxsize=4)
def _publisher(url: str, prefix: str, timeout_s: float) -> Publisher:
    try:
        return Publisher(url, prefix=prefix, timeout_s=timeout_s)
    except ValueError as error:
        raise ImproperlyConfigured(f"SNORKY_REDIS_URL or SNORKY_TIMEOUT_S: {error}") from error


def configured_publisher() -> Publisher | None:
    """Return the publisher that the settings name; None if SNORKY_REDIS_URL is None. Raises ImproperlyConfigured."""
    if not hasattr(settings, "SNORKY_REDIS_URL"):
        raise ImproperlyConfigured("set SNORKY_REDIS_URL to the gateway's Redis, or to None to publish nothing")
    if settings.SNORKY_REDIS_URL is None:
        return None
    prefix = getattr(settings, "SNORKY_PREFIX", "snorky")
    return _publisher(settings.SNORKY_REDIS_URL, prefix, getattr(settings, "SNORKY_TIMEOUT_S", TIMEOUT_S))


def publish_on_commit(
    channel: Any,
    message: Any,
    *,
    key: str | None = None,
    service: str = "pubsub",
    require_history: bool = False,
    using: str | None = None,
) -> None:
    """Publish a message when the current transaction is committed; at once if there is none.

    message: copied now; dates, decimals and UUIDs look as in Django's own responses. key: idempotency key, None = a
    random one. using: the database alias. require_history: as for `Publisher.publish`. Messages that Redis does not
    confirm are logged and sent by `publications_lost`. Raises TypeError, ValueError: a node would not accept it;
    ImproperlyConfigured.
    """
    publisher = configured_publisher()
    publication = Publication(channel, snapshot(message), key or secrets.token_hex(16), service, require_history)
    Sending(publication, "snorky" if publisher is None else publisher.prefix)  # raises here, not after the commit
    if publisher is not None:
        wait_for_commit([publication], _publish_now, using=using)


def _publish_now(publications: Sequence[Publication]) -> None:
    publisher = configured_publisher()
    if publisher is None:
        return
    try:
        publisher.publish_many(publications)
    except PublishManyError as error:
        lost = [publications[number] for number in sorted(error.errors)]
        _log.error("%d messages were committed but not confirmed as published: %s (%s)", len(lost), error, error.code)
        publications_lost.send_robust(sender=None, publications=lost, error=error)
