"""Publishers that never receive their acknowledgements, or die first, and retry."""

import asyncio
import random
import signal
import sys

from redis.exceptions import ResponseError

from snorky.client.aio import Client, Message
from tests.fault_lab.plan import PREFIX
from tests.fault_lab.source import RedisSource
from tests.fault_lab.trial import Fault, Trial
from tests.support.processes.nodes import Process
from tests.support.processes.proxy import FaultProxy
from tests.support.processes.tools import ROOT

__all__ = ["PUBLISHER_FAULTS"]

KEYS = 10_000
AT_ONCE = 40
LOSS_EVERY = 250  # acknowledgements: 39 lost replies, each with those that follow on the connection
LARGE_CHANNEL = "once:large"
LARGE_HEALED_WITHIN_S = 10.0
ONCE_CHANNEL = "once:replies"  # own channel rule, so nothing is trimmed
DEADLINE_S = 60.0
NUMBERS = 4_000  # of the job that is killed
LIFE_MAX_S = 0.4  # after its first acknowledgement
REPEATED = 20  # publishes that it repeats: it died before it could record them


async def lose_replies(trial: Trial) -> None:
    """Publish through a proxy that drops a reply at every 250th acknowledgement; retry until acknowledged."""
    lab = trial.lab
    assert lab.redis is not None
    name = f"{PREFIX}:{{pubsub:{ONCE_CHANNEL}}}"
    client = lab.redis.client()
    rng = random.Random(lab.rng.random())  # other keys if chaos draws this fault again
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
                    if len(positions) % LOSS_EVERY == 0 and len(positions) < KEYS:
                        proxy.lose_next_reply()
                    break

        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*(work() for _ in range(AT_ONCE)))
        finally:
            await source.close()
    trial.ended()
    entries = await client.xlen(f"{name}:history") - before
    await client.aclose()
    trial.figure(f"{KEYS} keys, {attempts} attempts, {entries} entries, {len(positions)} positions returned")
    trial.expect(entries == KEYS, f"{entries} entries of {KEYS} keys")
    trial.expect(len(positions) == KEYS, f"{len(positions)} positions of {KEYS} keys")
    trial.expect(attempts > KEYS, "no reply was lost: no test")


async def publish_17_mib(trial: Trial) -> None:
    """Publish by the function; store it as an earlier version's function did; then every node reads its histories."""
    lab = trial.lab
    assert lab.redis is not None and lab.proxy is not None
    name = f"{PREFIX}:{{pubsub:{LARGE_CHANNEL}}}"
    large = b'"' + b"x" * (17 << 20) + b'"'
    script = (ROOT / "gateway/redis/history/lua/publish.lua").read_text().partition("\n")[2]
    async with lab.redis.client() as redis, Client(lab.url()) as reader:
        async with asyncio.timeout(DEADLINE_S), reader.subscribe(LARGE_CHANNEL, recover=True) as kept:
            try:
                await redis.execute_command("FCALL", "snorky_publish", 1, name, large)
                trial.expect(False, "the function took 17 MiB")
            except ResponseError as error:
                trial.figure(str(error))
            entropy = f"{lab.rng.getrandbits(128):032x}"
            words = (name, entropy, "0", "600000", "86400000", "1000", large, "")
            await redis.eval(script, 2, f"{name}:position", f"{name}:history", *words)
            lab.proxy.cut()
            trial.ended()
            event = await anext(kept)
            trial.expect(isinstance(event, Message) and event.is_tombstone, f"no tombstone: {str(event)[:200]}")


async def die(trial: Trial) -> None:
    """SIGKILL a job in the middle of its calls, repeatedly; the next job starts slightly before that point."""
    lab = trial.lab
    assert lab.redis is not None
    history = f"{PREFIX}:{{pubsub:{ONCE_CHANNEL}}}:history"
    rng = random.Random(lab.rng.random())
    run = f"{rng.getrandbits(64):x}"
    told: dict[int, set[str]] = {}
    deaths = 0
    async with lab.redis.client() as client:
        before = await client.xlen(history)
        async with asyncio.timeout(DEADLINE_S):
            while len(told) < NUMBERS:
                first = max(0, len(told) - REPEATED)
                words = (lab.redis.url, PREFIX, ONCE_CHANNEL, run, str(first), str(NUMBERS))
                deaths += await _live(words, told, rng.uniform(0.0, LIFE_MAX_S))
        trial.ended()
        entries = await client.xlen(history) - before
    positions = {position for several in told.values() for position in several}
    trial.figure(f"killed {deaths} times in the middle of {NUMBERS} calls, {entries} entries")
    trial.expect(entries == NUMBERS, f"{entries} entries of {NUMBERS} keys")
    trial.expect(len(positions) == NUMBERS, f"{len(positions)} positions of {NUMBERS} keys")
    trial.expect(deaths > 0, "it ended before it was killed: no test")


async def _live(words: tuple[str, ...], told: dict[int, set[str]], life_s: float) -> bool:
    """Run the job for this long after its first acknowledgement, kill it, record its output; True if it was killed."""
    job = Process([sys.executable, "-m", "tests.fault_lab.mortal", *words], ready=r"^\d+ \S+$")
    try:
        await job.wait_ready()
        await asyncio.sleep(life_s)
        job.kill()
        code = await job.wait()
    finally:
        await job.close()
    assert code in (0, -signal.SIGKILL), f"the job ended with {code}:\n{job.log[-1000:]}"
    for line in job.log.splitlines(keepends=True):
        if line.endswith("\n"):  # otherwise it died while it wrote
            number, position = line.split()
            told.setdefault(int(number), set()).add(position)
    return code != 0


PUBLISHER_FAULTS = (
    Fault(
        key="oversize",
        name="17 MiB on a channel with a history",
        users_see="a tombstone there",
        inject=publish_17_mib,
        healed_within_s=LARGE_HEALED_WITHIN_S,
        needs_history=True,
    ),
    Fault(
        key="replies",
        name="publisher retries, replies dropped",
        users_see="all or nothing",
        inject=lose_replies,
        needs_history=True,
    ),
    Fault(
        key="job",
        name="publisher killed in the middle of a call",
        users_see="all or nothing",
        inject=die,
        needs_history=True,
    ),
)
