"""Guests: clients on one channel without a history, which subscribe again when the backend ends their subscription."""

import itertools
import time
from typing import Any

import aiohttp

from tests.fault_lab.client import LabClient
from tests.fault_lab.lab import Lab
from tests.fault_lab.plan import API_KEY
from tests.support.processes.nodes import NodeProcess
from tests.support.processes.tools import eventually

__all__ = ["GUESTS_PER_CLIENT", "Guests"]

GUESTS_PER_CLIENT = 5  # of the plan: 1,000 with the promised load
_serials = itertools.count(1)


class Guests:
    """Guests on every node. by_node: in the order of the nodes."""

    def __init__(self, lab: Lab, channel: str, by_node: list[list[LabClient]]) -> None:
        self._lab = lab
        self.channel = channel
        self.by_node = by_node

    @classmethod
    async def of(cls, lab: Lab) -> "Guests":
        """Connect them to all nodes, evenly."""
        channel, count = f"guests:{next(_serials)}", GUESTS_PER_CLIENT * lab.plan.clients // len(lab.nodes)
        by_node = []
        for node in lab.nodes:
            url = node.websocket_url
            where = {"where": lambda url=url: url, "plain_channel": channel}
            by_node.append(lab.crowd.add(count, channels_each=1, name="guest", comes_back=False, **where))
        guests = cls(lab, channel, by_node)
        await lab.crowd.subscribed(*guests.all, within_s=20)
        await eventually(guests.is_nobody_missing, within_s=20, what="dead nodes of earlier rows were cleaned up")
        return guests

    @property
    def all(self) -> list[LabClient]:
        return [client for clients in self.by_node for client in clients]

    async def is_nobody_missing(self) -> bool:
        """Return whether all nodes that Redis knows answer."""
        reply, _ = await self.unsubscribe(self._lab.nodes[0], identity="nobody")
        return not reply["missing"]

    async def unsubscribe(self, by: NodeProcess, **whom: str) -> tuple[dict[str, Any], float]:
        """Let the backend end the subscriptions of all, by this node; returns the reply and the seconds it took."""
        params = {"channel": self.channel, "reason": "The laboratory says so", **whom}
        return await self._order(by, "unsubscribe", params)

    async def subscribe(self, by: NodeProcess) -> tuple[dict[str, Any], float]:
        """Let the backend subscribe all to another channel; as `unsubscribe`."""
        return await self._order(by, "subscribe", {"channel": f"{self.channel}:offers", "onChannel": self.channel})

    async def _order(self, by: NodeProcess, command: str, params: dict[str, str]) -> tuple[dict[str, Any], float]:
        began_s = time.monotonic()
        body = {"service": "control", "message": {"command": command, "params": params}}
        url = f"http://127.0.0.1:{by.private_port}/backend"
        async with aiohttp.ClientSession(headers={"X-Backend-Key": API_KEY}) as session:
            async with session.post(url, json=body) as response:
                message = (await response.json())["message"]
        assert message["type"] == "response", message
        return message["data"], time.monotonic() - began_s

    async def until_ended(self, *nodes: int, within_s: float) -> float:
        """Wait until the guests of these nodes were notified and have subscribed again; returns the seconds it took."""
        began_s = time.monotonic()
        clients = [client for node in nodes for client in self.by_node[node]]

        async def all_ended() -> bool:
            return all(client.ends and client.is_subscribed for client in clients)

        await eventually(all_ended, within_s=within_s, what="guests were notified and have subscribed again")
        return time.monotonic() - began_s

    async def until_begun(self, *nodes: int, within_s: float) -> float:
        """Wait until the backend has subscribed the guests of these nodes; returns the seconds it took."""
        began_s = time.monotonic()

        async def all_begun() -> bool:
            return self.times_begun(*nodes) == {1}

        await eventually(all_begun, within_s=within_s, what="guests were subscribed")
        return time.monotonic() - began_s

    def times_begun(self, *nodes: int) -> set[int]:
        """Return how often the backend has subscribed the guests of these nodes."""
        return {len(client.begun) for node in nodes for client in self.by_node[node]}

    def times_ended(self, *nodes: int) -> set[int]:
        """Return how often the subscriptions of the guests of these nodes were ended."""
        return {len(client.ends) for node in nodes for client in self.by_node[node]}

    async def dismiss(self) -> None:
        """Disconnect them."""
        await self._lab.crowd.dismiss(*self.all)
