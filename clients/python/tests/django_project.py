"""A Django project with one app, todo/. Its database is SQLite in memory, its gateway a scripted server."""

from collections.abc import Iterator
from contextlib import contextmanager

import django
from django.conf import settings

settings.configure(
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    INSTALLED_APPS=["django.contrib.contenttypes", "django.contrib.auth", "rest_framework", "todo"],
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    ROOT_URLCONF="todo.urls",
    SECRET_KEY="of tests",
    USE_TZ=True,
    SNORKY_BACKEND_KEY="swordfish",
)
django.setup()

from django.db import connection  # noqa: E402 - Django demands its settings first
from django.test import override_settings  # noqa: E402
from todo.models import File, Note, Task  # noqa: E402

from snorky.client.django.gateway import configured_backend  # noqa: E402

__all__ = ["File", "Note", "Task", "gateway_at", "make_tables"]


def make_tables() -> None:
    """Create the tables if they do not exist."""
    there = connection.introspection.table_names()
    with connection.schema_editor() as editor:
        for model in (Task, Note, File):
            if model._meta.db_table not in there:
                editor.create_model(model)


@contextmanager
def gateway_at(url: str) -> Iterator[None]:
    """Run a scripted gateway within the block, and close the connections to it afterwards."""
    with override_settings(SNORKY_BACKEND_URL=url):
        backend = configured_backend()
        assert backend is not None
        try:
            yield
        finally:
            backend.transport.close()  # type: ignore[attr-defined]  # it is ours
