"""Visitors: residents of one node that do not reconnect, so that residents see them leave; and queries of holders."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Sequence, Set
from typing import Any

from tests.fault_lab.client import ROOM, LabClient
from tests.fault_lab.lab import Lab
from tests.support.clients.raw_ws import RawClient
from tests.support.processes.tools import eventually
from tests.support.scenarios.tokens import hmac_token

__all__ = ["PROBE", "Visitors", "members_and_names", "pick", "until_all_present"]

PROBE = "probe"  # the identity that asks for the members; it joins and leaves
_serials = itertools.count(1)  # names are never reused: otherwise a ghost of an earlier row would match


def pick(lab: Lab) -> int:
    """Choose a random node."""
    return lab.rng.randrange(len(lab.nodes))


class Visitors:
    """Visitors on one node, in the room and with a name each."""

    def __init__(self, lab: Lab, clients: Sequence[LabClient]) -> None:
        self._lab = lab
        self._clients = clients
        self.identities = {client.identity for client in clients if client.identity}

    @classmethod
    async def on(cls, lab: Lab, node: int, count: int = 10) -> "Visitors":
        """Connect some to the node with that number."""
        url = lab.nodes[node].websocket_url
        name = f"visitor-{next(_serials)}"
        clients = lab.crowd.add(count, channels_each=1, name=name, identities=True, where=lambda: url, comes_back=False)
        await lab.crowd.subscribed(*clients, within_s=10)
        visitors = cls(lab, clients)
        await visitors.until("joined", 1, within_s=10)
        return visitors

    def seen(self, status: str) -> list[Counter[str]]:
        """Counts of `joined` or `left` for each of them, by each resident that kept its connection."""
        return [
            Counter(one.identity for one in member.notices if one.status == status and one.identity in self.identities)
            for member in self._lab.crowd.residents
            if not member.drops
        ]

    async def until(self, status: str, times: int, *, within_s: float) -> float:
        """Wait until all observers have seen it this often for all of them; returns the seconds it took."""
        began_s = time.monotonic()

        async def all_seen() -> bool:
            observers = self.seen(status)
            return bool(observers) and all(
                seen[identity] >= times for seen in observers for identity in self.identities
            )

        await eventually(all_seen, within_s=within_s, what=f"{status} x {times} seen of {len(self.identities)}")
        return time.monotonic() - began_s

    def is_exactly(self, status: str, times: int) -> bool:
        """Return whether every observer has seen it exactly this often for each of them."""
        exact = Counter(dict.fromkeys(self.identities, times))
        return all(seen == exact for seen in self.seen(status))

    async def until_nameless(self, within_s: float) -> float:
        """Wait until none of their names is taken; returns the seconds it took."""
        began_s = time.monotonic()

        async def nameless() -> bool:
            _, names = await members_and_names(self._lab)
            return not self.identities & set(names)

        await eventually(nameless, within_s=within_s, what="names of the visitors are free")
        return time.monotonic() - began_s

    async def dismiss(self) -> None:
        """Disconnect them."""
        await self._lab.crowd.dismiss(*self._clients)


async def members_and_names(lab: Lab) -> tuple[list[str], list[Any]]:
    """Ask a ready node for the room's members and for all names."""
    node = await anext(node for node in lab.nodes if await node.status("/readyz", timeout_s=1.0) == 200)
    async with await RawClient.open("127.0.0.1", node.public_port) as client:
        token = hmac_token(PROBE, exp=time.time() + 60)
        response = await client.handshake({"Authorization": f"Bearer {token}"})
        assert response.status == 101, response
        joined = await client.call("join", service="chat", channel=ROOM)
        listed = await client.call("listParticipants", service="messaging")
        assert joined["type"] == listed["type"] == "response", json.dumps([joined, listed])[:200]
        return [one for one in joined["data"]["members"] if one != PROBE], listed["data"]


async def until_all_present(lab: Lab, within_s: float, *, others: Set[str] = frozenset()) -> float:
    """Wait until every resident, and these others, are in the room with their names; returns the seconds it took."""
    began_s = time.monotonic()
    wanted = {member.identity for member in lab.crowd.residents} | others

    async def present() -> bool:
        try:
            async with asyncio.timeout(2):
                members, names = await members_and_names(lab)
        except (StopAsyncIteration, AssertionError, TimeoutError, OSError, EOFError):
            return False
        return wanted <= set(members) and wanted <= set(names)

    await eventually(present, within_s=within_s, what="all residents are present")
    return time.monotonic() - began_s
