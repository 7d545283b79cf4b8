"""Renewals of a lease, over scripted answers."""

import asyncio
from typing import Any

from snorky.gateway.redis.connection.scripts import Call, Joined
from snorky.gateway.redis.directory.lease import Lease, Timings


class FakeScripts:
    """Renews every lease, and answers each other script with its name."""

    async def run(self, joined: Joined) -> list[Any]:
        return [[[b"renewed", b""], *(call.name for call in joined.calls[1:])]]


class Rider:
    def __init__(self, call: Call | None) -> None:
        self.call = call
        self.answers = asyncio.Queue[Any]()

    def ride(self) -> Call:
        if self.call is None:
            raise ValueError("no script")
        return self.call

    def on_ridden(self, call: Call, answer: Any) -> None:
        self.answers.put_nowait(answer)


async def test_a_rider_that_fails_holds_up_neither_the_renewal_nor_other_riders() -> None:
    lease = Lease(FakeScripts(), prefix="test", node_id="n", timings=Timings())  # type: ignore[arg-type]
    broken, good = Rider(None), Rider(Call("look", [], []))
    lease.riders += [broken, good]
    lease.start()
    try:
        async with asyncio.timeout(30.0):
            assert await good.answers.get() == "look"
        assert lease.is_held and broken.answers.empty()
    finally:
        await lease.abandon()
