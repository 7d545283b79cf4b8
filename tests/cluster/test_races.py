"""Races for names and rooms: 200 clients on three nodes, seeded; the invariants are those of `support.scenarios.race`.

RACE_S: seconds (10 unless set; 60 for the long run). RACE_SEED: another seed.
"""

import asyncio
import json
import os
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from snorky.gateway import Node, ServiceRegistry
from snorky.gateway.protocol.codec import decode_json, encode
from snorky.gateway.protocol.publication import read_publication
from snorky.services.chat import ChatService
from snorky.services.messaging import MessagingService
from tests.support.fakes.fake_wire import JSON
from tests.support.fakes.memory_cluster import town
from tests.support.scenarios.node_stage import node_stage
from tests.support.scenarios.race import Link, Race, Racer
from tests.support.scenarios.tokens import hmac_token

DURATION_S = float(os.environ.get("RACE_S", "10"))
SEED = int(os.environ.get("RACE_SEED", "20260304"))


class LocalLink:
    """A connection to a node in this process."""

    transport_name = "websocket"

    def __init__(self, node: Node, registry: ServiceRegistry, racer: Racer) -> None:
        self._node = node
        self._registry = registry
        self._racer = racer
        self._is_lost = False
        self._connection = node.new_connection(_Wire(self), JSON)
        self._connection.identity = racer.identity
        node.connect(self._connection, registry)

    async def send(self, service: str, message: object) -> None:
        self._registry.receive(self._connection, encode({"service": service, "message": message}, JSON.encoding))

    def hear(self, data: bytes) -> None:
        """Handle lines of JSON."""
        for line in data.splitlines():
            envelope: Any = decode_json(line)
            self._racer.take(envelope["message"])

    async def close(self) -> None:
        self.end(1000)

    def end(self, code: int) -> None:
        """The connection was closed, by either side."""
        if not self._is_lost:
            self._is_lost = True
            self._node.disconnect(self._connection, code)
            self._racer.lost()


class _Wire:
    """Passes writes to a link at once."""

    transport_name = "websocket"

    def __init__(self, link: LocalLink) -> None:
        self._link = link

    def write(self, data: bytes) -> None:
        self._link.hear(data)

    def buffered_bytes(self) -> int:
        return 0

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def close(self, code: int, reason: str) -> None:
        asyncio.get_running_loop().call_soon(self._link.end, code)


class SocketLink:
    """A WebSocket to a node process."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, racer: Racer) -> None:
        self._socket = socket
        self._racer = racer
        self._reader = asyncio.create_task(self._read())

    async def send(self, service: str, message: object) -> None:
        with suppress(ConnectionError):
            await self._socket.send_str(json.dumps({"service": service, "message": message}))

    async def close(self) -> None:
        await self._socket.close()
        await self._reader

    async def _read(self) -> None:
        async for frame in self._socket:
            self._racer.take(json.loads(frame.data)["message"])
        self._racer.lost()


async def test_names_and_rooms_are_true_on_three_nodes_whatever_races() -> None:
    async with town(3, lambda: [ChatService(), MessagingService()], late=10, seed=SEED) as nodes:

        async def connect(racer: Racer, number: int) -> Link:
            at = number % 3
            return LocalLink(nodes.nodes[at], nodes.registries[at], racer)

        race = Race(connect, racers=200, seed=SEED)
        await race.run(DURATION_S)
        assert race.quiet_points >= DURATION_S / 4
        assert race.actions > 100 * DURATION_S
        assert race.takeovers > 0
        _joined_and_left_alternate(nodes.bus.published)


async def test_names_and_rooms_are_true_over_node_processes(tmp_path: Path) -> None:
    async with node_stage(tmp_path, 3) as stage:

        async def connect(racer: Racer, number: int) -> Link:
            socket = await stage.socket(number)
            token = hmac_token(racer.identity, exp=time.time() + DURATION_S + 60)
            call = {"command": "authenticate", "params": {"token": token}, "callId": 0}
            await socket.send_str(json.dumps({"service": "auth", "message": call}))
            answer = await socket.receive_json(timeout=DURATION_S + 10)
            assert answer["message"]["type"] == "response", answer
            return SocketLink(socket, racer)

        race = Race(connect, racers=200, seed=SEED)
        await race.run(DURATION_S)
        await race.close()
        assert race.quiet_points > 0
        assert race.actions > 20 * DURATION_S
        await stage.is_clean(within_s=30)


class SilentLink:
    """A connection whose answers the test gives."""

    async def send(self, service: str, message: object) -> None: ...

    async def close(self) -> None: ...


@pytest.mark.parametrize("end", ["closed", "released too late", "released"])
async def test_a_late_reply_is_a_second_owner_unless_its_client_turns_out_to_have_lost_the_name(end: str) -> None:
    async def connect(racer: Racer, number: int) -> Link:
        return SilentLink()

    async def asks(racer: Racer, command: str) -> asyncio.Task[Any]:
        call = asyncio.create_task(racer.ask("messaging", command, ["Invalid participant"], name="name 1"))
        await asyncio.sleep(0)
        return call

    granted = {"type": "response", "callId": 1, "data": None}
    race = Race(connect, racers=3, seed=SEED, identities=2)
    late, other, twin = race.racers
    for racer in race.racers:
        await race.connect(racer)
    calls = [await asks(racer, "registerParticipant") for racer in (late, twin, other)]
    twin.take(granted)  # it takes over what `late` was granted,
    race.dropped(twin, "name 1")  # releases it,
    other.take(granted)  # and another identity gets it
    late.take(granted)
    await asyncio.gather(*calls)
    assert "two clients" in race.first_error()
    if end == "closed":
        late.lost()
    else:
        late.link = SilentLink()
        released = asyncio.create_task(late.release("name 1"))
        await asyncio.sleep(0)
        error = {"type": "error", "callId": 2, "message": "Invalid participant"}
        late.take(error if end == "released too late" else granted | {"callId": 2})
        await released
    assert ("two clients" in race.first_error()) is (end == "released")


def _joined_and_left_alternate(published: Sequence[tuple[str, bytes]]) -> None:
    """Publications follow the same rules as deliveries: per room and identity, beginning with `joined`."""
    last: defaultdict[tuple[str, str], str] = defaultdict(lambda: "left")
    for key, data in published:
        message: Any = decode_json(read_publication(data).payload)
        if isinstance(message, dict) and message.get("type") == "presence":
            place = (key, message["from"])
            assert message["status"] != last[place], place
            last[place] = message["status"]
