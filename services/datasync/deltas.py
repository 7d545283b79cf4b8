"""Deltas: changes of a model's data, and the form in which a subscription gets them.

{"type": "insert" | "delete", "model": NAME, "data": ENTITY}
{"type": "update", "model": NAME, "newData": ENTITY, "oldData": ENTITY}
"""

from dataclasses import dataclass
from typing import Any, Literal

from snorky.services.rpc import RPCError

__all__ = ["Delta", "read_delta"]


@dataclass(frozen=True, slots=True)
class Delta:
    """One change. new, old: the data after and before it; an insert has no old, a delete no new."""

    kind: Literal["insert", "update", "delete"]
    model: str
    new: Any = None
    old: Any = None

    @property
    def value(self) -> dict[str, Any]:
        """The delta as the JSON entity that is published."""
        if self.kind == "update":
            return {"type": "update", "model": self.model, "newData": self.new, "oldData": self.old}
        return {"type": self.kind, "model": self.model, "data": self.new if self.kind == "insert" else self.old}

    def shown(self, is_new_matched: bool, is_old_matched: bool) -> "Delta | None":
        """Return the delta as a subscription with a filter sees it; None = not at all.

        An update that makes the data match is an insert, one that makes it stop matching is a delete.
        """
        if not is_new_matched and not is_old_matched:
            return None
        if (is_new_matched and is_old_matched) or self.kind != "update":
            return self
        if is_new_matched:
            return Delta("insert", self.model, new=self.new)
        return Delta("delete", self.model, old=self.old)


def read_delta(value: Any) -> Delta:
    """Parse a delta that a backend publishes. Raises RPCError, with the protocol's texts."""
    if not isinstance(value, dict):
        raise RPCError("Invalid params", "invalid_params")
    if "type" not in value or "model" not in value:
        raise RPCError("Missing field", "missing_field")
    kind, model = value["type"], value["model"]
    if not isinstance(model, str):
        raise RPCError("model must be string", "invalid_model")
    try:
        if kind == "insert":
            return Delta("insert", model, new=value["data"])
        if kind == "delete":
            return Delta("delete", model, old=value["data"])
        if kind == "update":
            return Delta("update", model, new=value["newData"], old=value["oldData"])
    except KeyError:
        raise RPCError("Missing field", "missing_field") from None
    raise RPCError("Invalid delta type", "invalid_delta_type")
