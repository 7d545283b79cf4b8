"""@subscribable: publish the changes of a Django model.

Rules:
- A delta contains rows as they are in the database. They are read before and after the change, never taken from the
  saved instance, which may have expressions, strings for dates, or fields that `update_fields` omits.
- In a transaction the first read locks the row (if the database can), so that the deltas of two transactions that
  change it are consistent with each other.
- Only the named fields (or the result of `jsonify()`) are published.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

from django.core.exceptions import FieldDoesNotExist, ImproperlyConfigured
from django.db import transaction
from django.db.models import FileField, Model
from django.db.models.signals import post_delete, post_save, pre_delete, pre_save

from snorky.client.django.gateway import snapshot
from snorky.client.django.outbox import publish_deltas

__all__ = ["subscribable"]

_BEFORE = "_snorky_before"  # attribute of an instance, from the signal before to the one after
_M = TypeVar("_M", bound=type[Any])


@overload
def subscribable(model: _M, /) -> _M: ...


@overload
def subscribable(*, fields: Sequence[str] = (), name: str = "") -> Callable[[_M], _M]: ...


def subscribable(model: _M | None = None, /, *, fields: Sequence[str] = (), name: str = "") -> _M | Callable[[_M], _M]:
    """Publish a model's inserts, updates and deletes when they are committed.

    fields: names of the fields to publish; without them the model's method `jsonify()` returns the data. name: the
    model's name in deltas, by default the class name. Raises ImproperlyConfigured: neither fields nor jsonify; no such
    field.
    """

    def decorate(model: _M) -> _M:
        _Watcher(model, fields, name or model.__name__)
        return model

    return decorate if model is None else decorate(model)


class _Watcher:
    """Publishes the changes of one model, by its signals."""

    def __init__(self, model: type[Any], fields: Sequence[str], name: str) -> None:
        if model._meta.abstract:
            raise ImproperlyConfigured(f"@subscribable: {model.__name__} is abstract; decorate its concrete subclasses")
        self._model = model
        self._name = name
        self._fields = [_field_of(model, field) for field in fields]
        if not fields and not callable(getattr(model, "jsonify", None)):
            raise ImproperlyConfigured(
                f"@subscribable: say which fields of {model.__name__} to publish: "
                "write @subscribable(fields=(...)) or a method jsonify()"
            )
        for signal, receiver in (
            (pre_save, self._before_save),
            (post_save, self._after_save),
            (pre_delete, self._before_delete),
            (post_delete, self._after_delete),
        ):
            signal.connect(receiver, sender=model, weak=False, dispatch_uid=f"snorky.{model._meta.label}")

    def _before_save(self, instance: Model, using: str, raw: bool, **_: Any) -> None:
        if not raw:
            setattr(instance, _BEFORE, self._row(instance, using, is_first=True))

    def _after_save(self, instance: Model, created: bool, using: str, raw: bool, **_: Any) -> None:
        if raw:  # a fixture: related rows may not exist yet
            return
        before = vars(instance).pop(_BEFORE, None)
        after = self._row(instance, using)
        if after is None or after == before:  # deleted already, which is published separately; or not changed
            return
        if created or before is None:
            delta = {"type": "insert", "model": self._name, "data": after}
        else:
            delta = {"type": "update", "model": self._name, "newData": after, "oldData": before}
        publish_deltas([delta], using=using)

    def _before_delete(self, instance: Model, using: str, **_: Any) -> None:
        setattr(instance, _BEFORE, self._row(instance, using, is_first=True))

    def _after_delete(self, instance: Model, using: str, **_: Any) -> None:
        before = vars(instance).pop(_BEFORE, None)
        if before is not None:
            publish_deltas([{"type": "delete", "model": self._name, "data": before}], using=using)

    def _row(self, instance: Any, using: str, *, is_first: bool = False) -> Any:
        """Read the instance's row from the database, as JSON; None = there is none."""
        if instance.pk is None:
            return None
        rows = self._model._base_manager.using(using).filter(pk=instance.pk)
        connection = transaction.get_connection(using)
        if is_first and connection.in_atomic_block and connection.features.has_select_for_update:
            rows = rows.select_for_update()
        row = next(iter(rows), None)
        if row is None:
            return None
        return snapshot({field.name: _value(field, row) for field in self._fields} if self._fields else row.jsonify())


def _field_of(model: type[Any], name: str) -> Any:
    try:
        field = model._meta.get_field(name)
    except FieldDoesNotExist as error:
        raise ImproperlyConfigured(f"@subscribable: {error}") from error
    if not field.concrete or field.many_to_many:
        raise ImproperlyConfigured(f"@subscribable: {model.__name__}.{name} is not a column; write jsonify()")
    return field


def _value(field: Any, row: Model) -> Any:
    value = field.value_from_object(row)  # of a foreign key: the other's key
    return str(value) if isinstance(field, FileField) else value
