"""Views of the tests, and their URLs."""

import uuid
from typing import Any

from django.urls import include, path
from rest_framework import permissions, routers, serializers, viewsets
from rest_framework.response import Response
from rest_framework.views import APIView

from snorky.client.django.rest_framework import (
    ListSubscribeCreateAPIView,
    ListSubscribeModelMixin,
    SubscribeModelMixin,
    subscription_in_response,
)
from todo.models import Task


class TaskSerializer(serializers.ModelSerializer[Task]):
    class Meta:
        model = Task
        fields = ("id", "title", "is_done")


class TaskViewSet(ListSubscribeModelMixin, viewsets.ModelViewSet[Task]):
    queryset = Task.objects.order_by("id")
    serializer_class = TaskSerializer
    dealer = "AllTasks"


class DoneTasks(ListSubscribeCreateAPIView):
    queryset = Task.objects.filter(is_done=True)
    serializer_class = TaskSerializer
    dealer = "TasksByState"

    def get_dealer_query(self) -> Any:
        return {"user": self.request.query_params.get("user"), "id": uuid.UUID(int=1)}


class Forbidden(DoneTasks):
    permission_classes = (permissions.IsAdminUser,)


class Undealt(DoneTasks):
    dealer = None


class Refusing(SubscribeModelMixin, APIView):
    dealer = "AllTasks"

    @subscription_in_response
    def get(self, request: Any) -> Response:
        return Response(status=400)


router = routers.DefaultRouter()
router.register("tasks", TaskViewSet)
urlpatterns = [
    path("", include(router.urls)),
    path("done/", DoneTasks.as_view()),
    path("forbidden/", Forbidden.as_view()),
    path("refusing/", Refusing.as_view()),
    path("undealt/", Undealt.as_view()),
]
