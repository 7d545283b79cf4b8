"""The table of docs/permissions.md by the token: each kind, when a client sends it, and when it becomes so later.

Clients of Centrifuge and Pusher try the same cells; the expected codes are translated from the table.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.support.clients.any_protocol import CENTRIFUGE
from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import NodeStage, node_stage
from tests.support.scenarios.permission_tables import TRANSPORTS
from tests.support.scenarios.permission_trials import (
    Cell,
    Findings,
    Trial,
    expected,
    try_required,
    try_tokens,
)
from tests.support.scenarios.permission_trials_centrifuge import (
    CentrifugeTrial,
    in_centrifuge,
    try_required_of_centrifuge,
)
from tests.support.scenarios.permission_trials_pusher import (
    APPS,
    WITHOUT_MEANING,
    PusherTrial,
    in_pusher,
    try_required_of_pusher,
    try_signatures,
)

RULES = [
    {"match": "open", "allow_subscribe": "anyone"},
    {"match": "known", "allow_subscribe": "authenticated"},
    {"match": "*", "allow_subscribe": "token", "allow_publish": "authenticated"},
]
ENV = {
    "SNORKY_AUTH__LEEWAY_S": "0",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": json.dumps(RULES),
    "SNORKY_SERVICES__CHAT__ROOMS": '[{"match": "*", "allow_join": "token"}]',
    "SNORKY_SERVICES__CURSORS__DOCUMENTS": '[{"match": "*", "allow_join": "token"}]',
}
REQUIRED = {"SNORKY_AUTH__REQUIRED": "true", "SNORKY_AUTH__TIMEOUT_S": "1"}

AnyTrial = TypeVar("AnyTrial", bound=Findings)
Found = dict[str, dict[Cell, set[str]]]  # by the name of a trial


async def found_by(
    directory: Path,
    make: Callable[[NodeStage], Sequence[AnyTrial]],
    on_any: Callable[[AnyTrial], Awaitable[None]],
    on_required: Callable[[AnyTrial], Awaitable[None]],
    env: Mapping[str, str],
) -> Found:
    """Let trials use a node, and at the same time others one that requires an identity; returns what each has found.

    make: the trials of a node, which use it at the same time.
    """

    async def use(name: str, attempt: Callable[[AnyTrial], Awaitable[None]], settings: Mapping[str, str]) -> Any:
        (directory / name).mkdir()
        async with node_stage(directory / name, 1, env={**ENV, **env, **settings}) as nodes:
            trials = make(nodes)
            await all_of(*map(attempt, trials))
            return trials

    by_node = await all_of(use("any", on_any, {}), use("required", on_required, REQUIRED))
    return {one.name: one.found | other.found for one, other in zip(*by_node, strict=True)}


async def all_of(*awaitables: Awaitable[Any]) -> list[Any]:
    """Wait for all; returns their results. Raises the first exception, when none is in progress."""
    results = await asyncio.gather(*awaitables, return_exceptions=True)
    for each in results:
        if isinstance(each, BaseException):
            raise each
    return results


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_cell_of_the_table_is_true(transport: str, tmp_path: Path) -> None:
    def make(nodes: NodeStage) -> list[Trial]:
        return [Trial(TransportStage(nodes, [transport], None), transport)]

    assert await found_by(tmp_path, make, try_tokens, try_required, {}) == {transport: expected()}


async def test_every_cell_of_the_table_is_true_for_centrifuge(tmp_path: Path) -> None:
    def make(nodes: NodeStage) -> list[CentrifugeTrial]:
        return [CentrifugeTrial(nodes, kind) for kind in CENTRIFUGE]

    found = await found_by(tmp_path, make, try_tokens, try_required_of_centrifuge, {})
    assert found == dict.fromkeys(CENTRIFUGE, expected(in_centrifuge))


async def test_every_cell_of_the_table_with_a_meaning_is_true_for_pusher(tmp_path: Path) -> None:
    found = await found_by(tmp_path, lambda nodes: [PusherTrial(nodes)], try_signatures, try_required_of_pusher, APPS)
    assert found == {"pusher": expected(in_pusher, without_meaning=WITHOUT_MEANING)}
