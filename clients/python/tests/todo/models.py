"""Models of the tests."""

import uuid
from typing import Any

from django.db import models

from snorky.client.django import subscribable


@subscribable(fields=("id", "title", "is_done", "due"))
class Task(models.Model):
    title = models.CharField(max_length=100)
    is_done = models.BooleanField(default=False)
    due = models.DateField(null=True)
    secret = models.CharField(max_length=100, default="of the house")


@subscribable
class Note(models.Model):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    task = models.ForeignKey(Task, on_delete=models.CASCADE)
    price = models.DecimalField(max_digits=6, decimal_places=2, default=1)
    file = models.FileField(null=True)

    def jsonify(self) -> dict[str, Any]:
        return {"id": self.id, "task": self.task.title, "price": self.price}


@subscribable(fields=("task", "file"), name="Attachment")
class File(models.Model):
    task = models.ForeignKey(Task, on_delete=models.CASCADE)
    file = models.FileField()
