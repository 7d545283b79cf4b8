"""Settings of the to-do list: one machine, no login."""

import os
from pathlib import Path

from django.core.management.utils import get_random_secret_key

SECRET_KEY = get_random_secret_key()  # no session or cookie must survive the process
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
INSTALLED_APPS = ["rest_framework", "todo"]
ROOT_URLCONF = "todo.urls"
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": os.environ.get("TODO_DATABASE", Path(__file__).parents[1] / "db.sqlite3"),
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": [],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.AllowAny"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "UNAUTHENTICATED_USER": None,
}

SNORKY_BACKEND_URL = os.environ.get("SNORKY_BACKEND_URL", "http://127.0.0.1:8003/backend")
SNORKY_BACKEND_KEY = os.environ.get("SNORKY_PRIVATE__API_KEY")
GATEWAY_URL = os.environ.get("GATEWAY_URL", "ws://127.0.0.1:8002/ws")  # for the page
