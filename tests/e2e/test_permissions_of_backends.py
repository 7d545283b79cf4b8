"""The table of docs/permissions.md by the backend's key: each key and service, on a node and on workers."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.support.processes.nodes import GATEWAY, NodeProcess
from tests.support.scenarios.permission_tables import BACKEND_SERVICES, by_key

TABLE = by_key()
SECRET = "of this test, more than 32 bytes"
KEYS: Mapping[str, Any] = {
    "web": f"the key web {SECRET}",
    "jobs": {"key": f"the key jobs {SECRET}", "services": ["pubsub_backend"]},
    "desk": {"key": f"the key desk {SECRET}", "services": ["control", "auth_backend"]},
}
HEADERS = {
    "with a key of all services": {"X-Backend-Key": KEYS["web"]},
    "with a key of `pubsub_backend`": {"X-Backend-Key": KEYS["jobs"]["key"]},
    "with a key of `control` and `auth_backend`": {"X-Backend-Key": KEYS["desk"]["key"]},
    "with a wrong key": {"X-Backend-Key": f"the key none {SECRET}"},
    "without a key": {},
}
CALLS: Mapping[str, Mapping[str, Any]] = {
    "pubsub_backend": {"command": "publish", "params": {"channel": "c", "message": 1}},
    "auth_backend": {"command": "disconnect", "params": {"identity": "nobody"}},
    "datasync_backend": {"command": "publishDeltas", "params": {"deltas": []}},
    "control": {"command": "nodes", "params": {}},
}
CODES = {"401": "unauthorized", "403": "not_authorized"}


def cells(label: str) -> list[tuple[str, str]]:
    return list(zip(BACKEND_SERVICES, TABLE[label], strict=True))


async def post(http: aiohttp.ClientSession, node: NodeProcess, body: Any, headers: Mapping[str, str]) -> Any:
    """Post to the private port; returns the status and the reply."""
    url = f"http://127.0.0.1:{node.private_port}/backend"
    async with http.post(url, json=body, headers=headers) as response:
        return response.status, await response.json()


async def check(http: aiohttp.ClientSession, node: NodeProcess, label: str, headers: Mapping[str, str]) -> None:
    """Call each service with these headers, alone and in a batch, and compare with the table."""
    envelopes = [{"service": service, "message": CALLS[service]} for service in BACKEND_SERVICES]
    status, batch = await post(http, node, envelopes, headers)
    for number, (service, cell) in enumerate(cells(label)):
        expected = 200 if cell == "yes" else int(cell)
        found, reply = await post(http, node, envelopes[number], headers)
        assert found == expected, (label, service, reply)
        if expected == 401:
            assert (status, batch["message"]["code"]) == (401, "unauthorized"), label
            continue
        assert status == 200
        for message in (reply["message"], batch[number]["message"]):
            assert message["type"] == ("response" if cell == "yes" else "error"), (label, service, message)
            assert message.get("code") == CODES.get(cell), (label, service, message)


@pytest.mark.parametrize("kind", ["node", "workers"])
async def test_every_cell_of_the_table_is_true(kind: str, tmp_path: Path) -> None:
    others = {"without a key, and the node has none", "from a client, on the public port"}  # which other tests try
    assert set(TABLE) == set(HEADERS) | others
    argv = (*GATEWAY, "serve", *(["--workers", "2"] if kind == "workers" else []))
    env = {"SNORKY_PRIVATE__API_KEYS": json.dumps(KEYS)}
    async with NodeProcess.running(env, argv=argv) as node, aiohttp.ClientSession() as http:
        async with http.ws_connect(node.websocket_url) as client:
            await client.send_json(
                {"service": "pubsub", "message": {"command": "subscribe", "params": {"channel": "c"}}}
            )
            await client.receive_json(timeout=30)
            published = 0
            for label, headers in HEADERS.items():
                await check(http, node, label, headers)
                published += 2 * (cells(label)[0][1] == "yes")
            fence = {
                "service": "pubsub_backend",
                "message": {"command": "publish", "params": {"channel": "c", "message": 0}},
            }
            assert (await post(http, node, fence, HEADERS["with a key of all services"]))[0] == 200
            messages = [(await client.receive_json(timeout=30))["message"]["message"] for _ in range(published + 1)]
            assert messages == [1] * published + [0], "a refused call has no effect"
        refused = [json.loads(line) for line in node.log.splitlines() if '"not_authorized"' in line]
        assert {line["key"] for line in refused if line["event"] == "refused"} <= {"jobs", "desk"}
        audited = [line for line in refused if line["event"] == "control"]
        assert [(line["by"], line["command"]) for line in audited] == [("jobs", "nodes")] * 2


async def test_without_keys_every_call_is_accepted() -> None:
    async with NodeProcess.running() as node, aiohttp.ClientSession() as http:
        await check(http, node, "without a key, and the node has none", {})
