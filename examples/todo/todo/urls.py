"""URLs of the page and of the REST views."""

from django.urls import include, path
from rest_framework.routers import SimpleRouter

from todo.views import TaskViewSet, page

router = SimpleRouter()
router.register("tasks", TaskViewSet, basename="task")
urlpatterns = [path("", page), path("api/", include(router.urls))]
