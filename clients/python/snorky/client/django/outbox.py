"""Publications wait until the transaction of their data is committed.

Rules:
- The publications of one transaction are sent in order, together, after its commit; without a transaction at once.
- A rollback, also one to a savepoint, discards its publications: items share a batch only if they would be rolled back
  together, and Django drops the batch with the savepoint.
"""

from collections.abc import Callable, Iterable
from typing import Any

from django.db import transaction

from snorky.client.django.gateway import configured_backend, publish_now, snapshot

__all__ = ["publish_deltas", "wait_for_commit"]

Publish = Callable[[list[Any]], None]


class _Batch:
    """Items to publish after one commit, by one function."""

    def __init__(self, items: list[Any], publish: Publish) -> None:
        self.items = items
        self.publish = publish

    def __call__(self) -> None:
        self.publish(self.items)


def publish_deltas(deltas: Iterable[Any], *, using: str | None = None) -> None:
    """Publish deltas when the current transaction is committed; at once if there is none.

    deltas: {"type": "insert"|"delete", "model": NAME, "data": ANY} or {"type": "update", "model", "newData",
    "oldData"}; copied now. using: the database alias. Raises TypeError, ValueError: not JSON; ImproperlyConfigured.
    """
    taken = snapshot(list(deltas))
    if configured_backend() is not None:
        wait_for_commit(taken, publish_now, using=using)


def wait_for_commit(items: list[Any], publish: Publish, *, using: str | None = None) -> None:
    """Call `publish` with items when the current transaction is committed; at once if there is none."""
    if not items:
        return
    batch = _open_batch(transaction.get_connection(using), publish)
    if batch is not None:
        batch.items += items
    else:
        transaction.on_commit(_Batch(items, publish), using=using)


def _open_batch(connection: Any, publish: Publish) -> _Batch | None:
    """Return the batch that would be committed or rolled back together with new items; None if there is none."""
    if any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        return None  # a test may capture the callbacks of some lines: each needs its own batch
    if not connection.in_atomic_block or not connection.run_on_commit:
        return None
    savepoints, function, *_ = connection.run_on_commit[-1]
    if not isinstance(function, _Batch) or function.publish is not publish:
        return None
    return function if savepoints == set(connection.savepoint_ids) else None
