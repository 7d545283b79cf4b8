"""What there is to do."""

from django.db import models

from snorky.django import subscribable


@subscribable(fields=("id", "title", "completed"))
class Task(models.Model):
    """Something to do. Its changes are published; only these fields of it."""

    title = models.CharField(max_length=100)
    completed = models.BooleanField(default=False)
