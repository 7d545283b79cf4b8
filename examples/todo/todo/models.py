"""The model of the to-do list."""

from django.db import models

from snorky.client.django import subscribable


@subscribable(fields=("id", "title", "completed"))
class Task(models.Model):
    """A task. Its changes are published, with these fields only."""

    title = models.CharField(max_length=100)
    completed = models.BooleanField(default=False)
