"""Django: models whose changes are published when they are committed, and lists that browsers can subscribe to.

@subscribable(fields=("id", "title"))
class Task(models.Model): ...

`snorky.django.rest_framework` has the views. Settings: SNORKY_BACKEND_URL, SNORKY_BACKEND_KEY, and more in the README.
"""

from snorky.django.gateway import authorize_subscription, deltas_lost
from snorky.django.models import subscribable
from snorky.django.outbox import publish_deltas

__all__ = ["authorize_subscription", "deltas_lost", "publish_deltas", "subscribable"]
