"""Messages to channels, published through Redis when what they tell is committed.

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

from snorky.django.gateway import snapshot
from snorky.django.outbox import wait_for_commit
from snorky.errors import PublishManyError
from snorky.publication import Publication, Sending
from snorky.publisher import Publisher

__all__ = ["configured_publisher", "publications_lost", "publish_on_commit"]

TIMEOUT_S: Final = 5.0  # a request of a browser waits for it

# Sent with `publications` and `error` when Redis did not surely take what was committed. To publish them again, under
# the keys that they have, is safe.
publications_lost = Signal()

_log = logging.getLogger("snorky.django")


@lru_cache(maxsize=4)
def _publisher(url: str, prefix: str, timeout_s: float) -> Publisher:
    try:
        return Publisher(url, prefix=prefix, timeout_s=timeout_s)
    except ValueError as error:
        raise ImproperlyConfigured(f"SNORKY_REDIS_URL or SNORKY_TIMEOUT_S: {error}") from error


def configured_publisher() -> Publisher | None:
    """Give the publisher that the settings name; None = they say that there is none. Raises ImproperlyConfigured."""
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
    """Publish a message when the transaction that is under way is committed; at once if there is none.

    message: kept as it is now; dates, decimals and UUIDs go as in Django's own responses. key: makes it once. using:
    the database's alias. require_history: as of `Publisher.publish`. What Redis does not take is logged, and told by
    `publications_lost`. Raises TypeError, ValueError: a node would not take it; ImproperlyConfigured.
    """
    publisher = configured_publisher()
    publication = Publication(channel, snapshot(message), key or secrets.token_hex(16), service, require_history)
    Sending(publication, "snorky" if publisher is None else publisher.prefix)  # refused here, not behind the commit
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
        _log.error("%d messages were committed and not surely published: %s (%s)", len(lost), error, error.code)
        publications_lost.send_robust(sender=None, publications=lost, error=error)
