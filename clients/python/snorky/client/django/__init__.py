"""Django: publish the changes of models when they are committed, and let browsers subscribe to lists.

@subscribable(fields=("id", "title"))
class Task(models.Model): ...

publish_on_commit("orders", {"id": order.pk})

connection_token(request.user)

`snorky.client.django.rest_framework` has the views. Settings: SNORKY_BACKEND_URL, SNORKY_BACKEND_KEY,
SNORKY_REDIS_URL, SNORKY_TOKEN_HMAC_SECRET, and more in the README.
"""

from snorky.client.django.gateway import authorize_subscription, deltas_lost
from snorky.client.django.models import subscribable
from snorky.client.django.outbox import publish_deltas
from snorky.client.django.publishing import publications_lost, publish_on_commit
from snorky.client.django.tokens import connection_token, subscription_token

__all__ = [
    "authorize_subscription",
    "connection_token",
    "deltas_lost",
    "publications_lost",
    "publish_deltas",
    "publish_on_commit",
    "subscribable",
    "subscription_token",
]
