"""Receipt: what a Publisher returns for a publication."""

from dataclasses import dataclass

from snorky.client.position import Position

__all__ = ["Receipt"]


@dataclass(frozen=True, slots=True)
class Receipt:
    """The result of a publication that Redis has accepted.

    key: the idempotency key. position: None = the channel keeps no history. nodes, connections: how many subscribe to
    the channel; None = not requested or unknown. connections is known only if the channel's rule has `presence`.
    """

    key: str
    position: Position | None = None
    nodes: int | None = None
    connections: int | None = None
