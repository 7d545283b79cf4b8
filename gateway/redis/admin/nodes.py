"""Reads the states of all nodes, for operator commands (`snorky stats`, `snorky check`)."""

import asyncio
from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from snorky.gateway.redis.directory.node_states import NodeState, NodeStates
from snorky.gateway.redis.keys import node_key, nodes_key

__all__ = ["read_all_nodes", "read_nodes"]


async def read_all_nodes(clients: Sequence[Redis], prefix: str) -> list[NodeState]:
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


async def read_nodes(client: Redis, prefix: str) -> list[NodeState]:
    """Read the states of all living nodes, sorted by id. Raises redis.exceptions.RedisError.

    Removes ids whose state has expired.
    """
    answer: Any = await client.smembers(nodes_key(prefix))
    ids = sorted(node_id.decode(errors="replace") for node_id in answer)
    if not ids:
        return []
    states: Any = await client.mget([node_key(prefix, node_id) for node_id in ids])
    read = NodeStates.parse(ids, states)
    if read.dead:
        await client.srem(nodes_key(prefix), *read.dead)
    return read.living
