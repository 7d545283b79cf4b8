"""Cursors of clients, and what other clients see of them."""

from dataclasses import dataclass
from typing import Any

from snorky.gateway import Selector

__all__ = ["Cursor", "notice_of", "view_of"]


@dataclass(slots=True)
class Cursor:
    """A cursor of a client on this node."""

    document: Any
    handle: int
    position: Any
    status: Any

    @property
    def entry(self) -> str:
        """The name of its place in the document's roster."""
        return str(self.handle)

    @property
    def data(self) -> dict[str, Any]:
        """The data that the roster stores."""
        return {"position": self.position, "status": self.status}


def view_of(document: Any, entry: str, owner: str | None, data: dict[str, Any]) -> dict[str, Any]:
    """Return a cursor as other clients see it. entry: its place in the roster; data: position and status."""
    return {"publicHandle": int(entry), "document": document, "owner": owner, **data}


def notice_of(kind: str, cursor: dict[str, Any], author_id: str) -> tuple[Any, Selector]:
    """Return a notification to the document's clients other than its author, and its selector."""
    return {"type": kind, "cursor": cursor}, Selector(not_connection=author_id)
