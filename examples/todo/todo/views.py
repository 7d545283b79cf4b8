"""The REST views of tasks, and the page."""

from pathlib import Path

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from rest_framework import serializers, viewsets

from snorky.client.django.rest_framework import ListSubscribeModelMixin
from todo.models import Task

PAGE = (Path(__file__).parent / "index.html").read_text()


class TaskSerializer(serializers.ModelSerializer):
    class Meta:
        model = Task
        fields = ("id", "title", "completed")


class TaskViewSet(ListSubscribeModelMixin, viewsets.ModelViewSet):
    """All tasks, or only those with ?completed=true or false. The subscription covers the same tasks as the list."""

    serializer_class = TaskSerializer

    @property
    def state(self) -> bool | None:
        return {"true": True, "false": False}.get(self.request.query_params.get("completed", ""))

    def get_queryset(self):
        tasks = Task.objects.order_by("id")
        return tasks if self.state is None else tasks.filter(completed=self.state)

    def get_dealer(self) -> str:
        return "AllTasks" if self.state is None else "TasksByState"

    def get_dealer_query(self) -> bool | None:
        return self.state


def page(request: HttpRequest) -> HttpResponse:
    return HttpResponse(PAGE.replace("GATEWAY_URL", settings.GATEWAY_URL))
