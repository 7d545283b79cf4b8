"""Publishers that never hear their answers, and try again."""

import asyncio
import random

from tests.faults.lab.plan import PREFIX
from tests.faults.lab.source import RedisSource
from tests.faults.lab.trial import Fault, Trial
from tests.support.proxy import FaultProxy

__all__ = ["PUBLISHER_FAULTS"]

KEYS = 10_000
AT_ONCE = 40
ONCE_CHANNEL = "once:replies"  # a rule of its own: nothing is trimmed
DEADLINE_S = 60.0


async def lose_replies(trial: Trial) -> None:
    """Publishes through a proxy that loses replies again and again, each tried until it is acknowledged."""
    lab = trial.lab
    assert lab.redis is not None
    name = f"{PREFIX}:{{pubsub:{ONCE_CHANNEL}}}"
    client = lab.redis.client()
    rng = random.Random(lab.rng.random())  # not the same keys when it is drawn again
    before = await client.xlen(f"{name}:history")
    attempts = 0
    async with FaultProxy("127.0.0.1", lab.redis.port) as proxy:
        source = RedisSource(f"redis://127.0.0.1:{proxy.port}/0", keeps_history=True, timeout_s=0.25)
        numbers = iter(range(KEYS))
        run = f"{rng.getrandbits(64):x}"
        positions: dict[str, int] = {}

        async def work() -> None:
            nonlocal attempts
            for number in numbers:
                while True:
                    attempts += 1
                    try:
                        position = await source.publish(name, b'{"n": %d}' % number, f"{run}:{number}")
                    except Exception:
                        continue
                    positions[str(position)] = number
                    break

        async def harass() -> None:
            while True:
                await asyncio.sleep(rng.uniform(0.2, 0.8))
                proxy.lose_replies()
                await asyncio.sleep(rng.uniform(0.01, 0.05))
                proxy.cut()
                proxy.heal()

        harassing = asyncio.create_task(harass())
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        finally:
            harassing.cancel()
            await asyncio.gather(harassing, return_exceptions=True)
            await source.close()
    trial.ended()
    entries = await client.xlen(f"{name}:history") - before
    await client.aclose()
    trial.figure(f"{KEYS} keys, {attempts} attempts, {entries} entries, {len(positions)} positions told")
    trial.expect(entries == KEYS, f"{entries} entries of {KEYS} keys")
    trial.expect(len(positions) == KEYS, f"{len(positions)} positions of {KEYS} keys")
    trial.expect(attempts > KEYS, "no reply was lost: nothing was tried")


PUBLISHER_FAULTS = (
    Fault(
        key="replies",
        name="publisher retries, replies dropped",
        users_see="all or nothing",
        inject=lose_replies,
        needs_history=True,
    ),
)
