"""Heartbeat: every two seconds a node writes its state to Redis. `snorky stats` reads it.

In Redis, all in one slot, O(nodes) whatever the number of clients: the set `PREFIX:{nodes}` of node ids, and per node
`PREFIX:{nodes}:ID` with its state as JSON, which expires in Redis. An id without a state belongs to a dead node;
readers remove it. A node that was only late adds itself again with its next heartbeat.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import msgspec
import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from snorky.gateway.redis.admin.redis_py import client_of
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.keys import node_key, nodes_key

__all__ = ["Heartbeat", "NodeState", "read_all_nodes", "read_nodes"]

INTERVAL_S = 2.0
TTL_S = 8.0  # three heartbeats may fail
LOOK_EVERY = 5  # heartbeats between two reads of all nodes, which also remove ids of dead nodes

_log = structlog.get_logger("snorky.redis")


@dataclass(frozen=True, slots=True)
class NodeState:
    """The latest state of a living node. state: a JSON object, as the node wrote it."""

    node_id: str
    state: Mapping[str, Any]


class Heartbeat:
    """Context manager that writes one node's state every interval_s, and reads all nodes every LOOK_EVERY intervals.

    state: called for each heartbeat; must return JSON values, quickly. on_nodes: called with all living nodes.
    """

    def __init__(
        self,
        target: RedisTarget,
        *,
        prefix: str,
        node_id: str,
        state: Callable[[], Mapping[str, object]],
        on_nodes: Callable[[Sequence[NodeState]], None] | None = None,
        interval_s: float = INTERVAL_S,
        ttl_s: float = TTL_S,
    ) -> None:
        self._client = client_of(target, timeout_s=interval_s, max_connections=2)
        self._prefix = prefix
        self._node_id = node_id
        self._state = state
        self._on_nodes = on_nodes
        self._interval_s = interval_s
        self._ttl_ms = round(ttl_s * 1000)
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Start; returns at once, whether Redis is reachable or not."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="heartbeat")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and remove this node from the list if Redis answers within one interval."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        try:
            async with self._client.pipeline(transaction=False) as pipe, asyncio.timeout(self._interval_s):
                pipe.delete(node_key(self._prefix, self._node_id))
                pipe.srem(nodes_key(self._prefix), self._node_id)
                await pipe.execute()
        except (RedisError, OSError, TimeoutError) as failure:
            _log.info("node not removed from the list", error=str(failure), expires_in_s=self._ttl_ms / 1000)
        finally:
            await self._client.aclose()

    async def _run(self) -> None:
        is_failing = False
        beats = 0
        loop = asyncio.get_running_loop()
        while self._task is not None:  # not `while True`: redis-py may swallow a cancellation
            began = loop.time()
            try:
                await self._beat()
                if beats % LOOK_EVERY == 0:
                    nodes = await read_nodes(self._client, self._prefix)
                    if self._on_nodes is not None:
                        self._on_nodes(nodes)
            except Exception as error:  # the top of a task; even a failing state() must not end the heartbeats
                if not is_failing:
                    _log.warning("heartbeat fails", error=str(error) or repr(error))
                is_failing = True
            else:
                if is_failing:
                    _log.info("heartbeat is back")
                is_failing = False
            beats += 1
            await asyncio.sleep(max(0.0, began + self._interval_s - loop.time()))

    async def _beat(self) -> None:
        state = msgspec.json.encode(dict(self._state()))
        async with self._client.pipeline(transaction=False) as pipe:
            pipe.sadd(nodes_key(self._prefix), self._node_id)
            pipe.set(node_key(self._prefix, self._node_id), state, px=self._ttl_ms)
            await pipe.execute()


async def read_all_nodes(clients: Sequence["Redis"], prefix: str) -> list[NodeState]:
    """Read the states of all living nodes from several Redis, sorted by id. One reachable Redis is enough.

    Raises redis.exceptions.RedisError or OSError: none is reachable.
    """
    answers = await asyncio.gather(*(read_nodes(client, prefix) for client in clients), return_exceptions=True)
    found: dict[str, NodeState] = {}
    problems: list[BaseException] = []
    for answer in answers:
        if isinstance(answer, BaseException):
            problems.append(answer)
        else:
            found |= {node.node_id: node for node in answer}
    if len(problems) == len(answers):
        raise problems[0]
    return [found[node_id] for node_id in sorted(found)]


async def read_nodes(client: "Redis", prefix: str) -> list[NodeState]:
    """Read the states of all living nodes, sorted by id. Raises redis.exceptions.RedisError.

    Removes ids whose state has expired. A state that is not a JSON object is skipped and logged.
    """
    answer: Any = await client.smembers(nodes_key(prefix))
    ids = sorted(node_id.decode(errors="replace") for node_id in answer)
    if not ids:
        return []
    states = await client.mget([node_key(prefix, node_id) for node_id in ids])
    dead = [node_id for node_id, state in zip(ids, states, strict=True) if state is None]
    if dead:
        await client.srem(nodes_key(prefix), *dead)
    nodes = []
    for node_id, state in zip(ids, states, strict=True):
        if state is None:
            continue
        try:
            nodes.append(NodeState(node_id, msgspec.json.decode(state, type=dict[str, Any])))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            _log.warning("node state is not readable", node_id=node_id[:100], error=str(error))
    return nodes
