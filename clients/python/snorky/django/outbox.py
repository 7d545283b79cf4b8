"""Deltas wait for the commit of what they tell.

Rules:
- Deltas of one transaction go out in their order, together, after its commit; without a transaction at once.
- What a rollback undoes, also one to a savepoint, is not published: deltas share a batch only while they would
  be undone together, and Django drops the batch with the savepoint.
"""

from collections.abc import Iterable
from typing import Any

from django.db import transaction

from snorky.django.gateway import configured_backend, publish_now, snapshot

__all__ = ["publish_deltas"]


class _Batch:
    """What is published at one commit."""

    def __init__(self, deltas: list[Any]) -> None:
        self.deltas = deltas

    def __call__(self) -> None:
        publish_now(self.deltas)


def publish_deltas(deltas: Iterable[Any], *, using: str | None = None) -> None:
    """Publish deltas when the transaction that is under way is committed; at once if there is none.

    deltas: {"type": "insert"|"delete", "model": NAME, "data": ANY} or {"type": "update", "model", "newData",
    "oldData"}; kept as they are now. using: the database's alias. Raises TypeError, ValueError: one is no JSON;
    ImproperlyConfigured.
    """
    taken = snapshot(list(deltas))
    if configured_backend() is None or not taken:
        return
    batch = _open_batch(transaction.get_connection(using))
    if batch is not None:
        batch.deltas += taken
    else:
        transaction.on_commit(_Batch(taken), using=using)


def _open_batch(connection: Any) -> _Batch | None:
    """Find the batch that a new delta would share the fate of."""
    if any(getattr(block, "_from_testcase", False) for block in connection.atomic_blocks):
        return None  # a test may capture the callbacks of a few lines: none may hide in an earlier one
    if not connection.in_atomic_block or not connection.run_on_commit:
        return None
    savepoints, function, *_ = connection.run_on_commit[-1]
    return function if isinstance(function, _Batch) and savepoints == set(connection.savepoint_ids) else None
