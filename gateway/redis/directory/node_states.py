"""NodeReport: each renewal of a node's lease carries the node's state. `snorky stats` reads it.

In Redis, all in one slot, O(nodes) whatever the number of clients: the set `PREFIX:{nodes}` of node ids, and per node
`PREFIX:{nodes}:ID` with its state as JSON, which expires as the lease does. An id without a state belongs to a dead
node; readers remove it. A node that was only late adds itself again with its next renewal.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.resp import command
from snorky.gateway.redis.connection.scripts import Scripts
from snorky.gateway.redis.keys import node_key, nodes_key

__all__ = ["NodeReport", "NodeState", "NodeStates"]

LOOK_EVERY: Final = 5  # renewals between two reads of all nodes, which also remove ids of dead nodes

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class NodeState:
    """The latest state of a living node. state: a JSON object, as the node wrote it."""

    node_id: str
    state: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class NodeStates:
    """What Redis knows about the nodes. dead: ids whose state has expired."""

    living: list[NodeState]
    dead: list[str]

    @classmethod
    def parse(cls, ids: Sequence[str], states: Sequence[bytes | None]) -> "NodeStates":
        """Decode the states. A state that is not a JSON object is skipped and logged."""
        living = []
        for node_id, state in zip(ids, states, strict=True):
            if state is None:
                continue
            try:
                living.append(NodeState(node_id, msgspec.json.decode(state, type=dict[str, Any])))
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                _log.warning("node state is not readable", node_id=node_id[:100], error=str(error))
        return cls(living, [node_id for node_id, state in zip(ids, states, strict=True) if state is None])


class NodeReport:
    """The state that the renewals of one lease carry, and a read of all nodes every LOOK_EVERY renewals.

    renew_now: called to have the lease renewed now. timeout_s: of a read.
    """

    def __init__(
        self, scripts: Scripts, *, prefix: str, node_id: str, renew_now: Callable[[], None], timeout_s: float
    ) -> None:
        self._scripts = scripts
        self._prefix = prefix
        self._node_id = node_id
        self._renew_now = renew_now
        self._timeout_s = timeout_s
        self._state: Callable[[], Mapping[str, object]] | None = None
        self._on_nodes: Callable[[Sequence[NodeState]], None] = _ignore
        self._failure = ""  # why the state could not be made
        self._problem = ""  # as last logged
        self._carried = 0  # renewals with a state

    def begin(
        self,
        state: Callable[[], Mapping[str, object]],
        *,
        on_nodes: Callable[[Sequence[NodeState]], None] | None = None,
    ) -> None:
        """Report from now on.

        state: called for each renewal; must return JSON values, quickly. on_nodes: called with all living nodes.
        """
        self._state = state
        self._on_nodes = on_nodes or _ignore
        self._renew_now()

    def encode(self) -> bytes:
        """Return the state as JSON; b"" = there is none, or it cannot be made. Never raises."""
        if self._state is None:
            return b""
        try:
            state = msgspec.json.encode(dict(self._state()))
        except Exception as error:  # a lease must not end because of figures
            self._failure = str(error) or repr(error)
            return b""
        self._failure = ""
        return state

    async def on_renewed(self, problem: str) -> None:
        """Handle a renewal; every LOOK_EVERY ones read all nodes. problem: why Redis did not store the state.

        Never raises.
        """
        if self._state is None:
            return
        self._tell(self._failure or problem)
        self._carried += 1
        if self._carried % LOOK_EVERY == 1:
            try:
                async with asyncio.timeout(self._timeout_s):
                    nodes = await self._read()
                self._on_nodes(nodes)
            except Exception as error:  # as above; the next read may succeed
                what = error.what if isinstance(error, BrokerUnavailable) else repr(error)
                _log.info("node states not read", error=what)

    async def _read(self) -> list[NodeState]:
        nodes = nodes_key(self._prefix).encode()
        (found,) = await self._scripts.run(command(b"SMEMBERS", nodes))
        ids = sorted(node_id.decode(errors="replace") for node_id in found)
        if not ids:
            return []
        keys = [node_key(self._prefix, node_id).encode() for node_id in ids]
        (states,) = await self._scripts.run(command(b"MGET", *keys))
        read = NodeStates.parse(ids, states)
        if read.dead:
            await self._scripts.run(command(b"SREM", nodes, *(node_id.encode() for node_id in read.dead)))
        return read.living

    def _tell(self, problem: str) -> None:
        if problem and not self._problem:
            _log.warning("node state not written", error=problem)
        elif self._problem and not problem:
            _log.info("node state is written again")
        self._problem = problem


def _ignore(_: object) -> None:
    pass
