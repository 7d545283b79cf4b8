"""Several deployments, versions and misconfigurations on one Redis. Acknowledged messages are stored or reported lost.

Each happens while all subscribers of one channel are away, so no node is subscribed to that channel. They return
when the nodes have finished their repairs; in most rows half of them return during the repairs.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.fault_lab.plan import PREFIX
from tests.fault_lab.trial import Fault, Trial
from tests.support.processes.nodes import GATEWAY, NodeProcess
from tests.support.processes.tools import eventually

__all__ = ["DEPLOYMENT_FAULTS"]

# Like a version that knows no rules of this prefix: it publishes and stores nothing.
OLDER = """#!lua name=snorky
-- format 1
redis.register_function('snorky_publish', function(keys, args)
  redis.call('PUBLISH', keys[1], args[1])
  return ''
end)
"""
REPAIRED_WITHIN_S = 4.0  # two checks of a node
REGISTERED_WITHIN_S = 15.0
EXIT_WITHIN_S = 40.0
UNKEPT_TRIES = 5  # a node may restore the library right after the foreign one was loaded
BEYOND = 5  # numbers of each channel: before, and after recovery
STAY = 25  # numbers of each channel while a stray node runs
FEWER = """
[services.pubsub]
class = "snorky.services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "lab:*"
history = 1
"""

Event = Callable[[Trial, str], Awaitable[None]]


async def meanwhile(trial: Trial, *, happen: Event, are_early: bool) -> None:
    """Inject it for a channel whose subscribers are away."""
    lab = trial.lab
    channel = lab.rng.choice(lab.plan.channel_names[::2])  # channels that the function publishes to
    absent = [member for member in lab.crowd.members if channel in member.channels]
    early = absent[::2] if are_early else []
    async with lab.crowd.away(*absent):
        await lab.more(BEYOND)
        await happen(trial, channel)
        for client in early:
            client.come_back()
        trial.ended()
        if early:
            await lab.crowd.subscribed(*early, within_s=10)
        await eventually(partial(_is_sound, trial), within_s=REPAIRED_WITHIN_S, what="the library is the nodes'")
        await lab.more(BEYOND)
    unkept = sum(one.is_unkept for one in lab.load.uncertain)
    trial.figure(f"{len(absent)} away, {len(early)} of them back at once; {unkept} not stored")


async def _is_sound(trial: Trial) -> bool:
    return "-- body" in str(await _command(trial, "FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE"))


async def _command(trial: Trial, *words: object) -> object:
    assert trial.lab.redis is not None
    async with trial.lab.redis.client() as client:
        return await client.execute_command(*words)


def stray(*, rules: str = "", prefix: str = PREFIX, database: int = 0) -> Event:
    """A node of another deployment, or with a wrong setting, starts and stops."""

    async def happen(trial: Trial, _channel: str) -> None:
        lab = trial.lab
        assert lab.redis is not None
        argv = [*GATEWAY, "serve"]
        if rules:
            config = lab.directory / "stray.toml"
            config.write_text(rules, encoding="utf-8")
            argv += ["--config", str(config)]
        url = lab.redis.url.removesuffix("/0") + f"/{database}"
        async with NodeProcess.running({"SNORKY_REDIS_URL": url, "SNORKY_PREFIX": prefix}, argv=argv) as node:

            async def is_registered() -> bool:
                return await node.status("/readyz") == 200 and "channel rules merged" in node.log

            await eventually(is_registered, within_s=REGISTERED_WITHIN_S, what="the stray node has registered")
            await lab.more(STAY)
        unkept = sum(one.is_unkept for one in lab.load.uncertain)
        trial.expect(not unkept, f"{unkept} publications were not stored")

    return happen


def foreign(load: Callable[[Trial], Awaitable[None]]) -> Event:
    """Replace the nodes' library by one that stores nothing, until it has published something on the channel."""

    async def happen(trial: Trial, channel: str) -> None:
        uncertain = trial.lab.load.uncertain
        before = len(uncertain)

        async def is_over() -> bool:
            return is_unkept() or await _is_sound(trial)

        def is_unkept() -> bool:
            return any(one.is_unkept and one.channel == channel for one in uncertain[before:])

        for _ in range(UNKEPT_TRIES):
            trial.times += 1  # clients move also if the nodes repair it before anything was published
            await load(trial)
            await eventually(is_over, within_s=REPAIRED_WITHIN_S, what="a publication is not stored, or a node repairs")
            if is_unkept():
                return
        trial.expect(False, "nothing was published by the foreign library: no test")

    return happen


def lost(*words: object) -> Event:
    """Delete the library: publishes are refused until a node has loaded it again."""

    async def happen(trial: Trial, _channel: str) -> None:
        repairs = await trial.lab.metric("snorky_redis_library_repairs_total")
        await _command(trial, *words)

        async def is_repaired() -> bool:
            return await trial.lab.metric("snorky_redis_library_repairs_total") > repairs

        await eventually(is_repaired, within_s=REPAIRED_WITHIN_S, what="a node has repaired it")

    return happen


async def load_older(trial: Trial) -> None:
    """Load the library as an older node does at its start, or an operator by hand."""
    await _command(trial, "FUNCTION", "LOAD", "REPLACE", OLDER)


async def restore_older(trial: Trial) -> None:
    """FUNCTION RESTORE of an old dump."""
    assert trial.lab.redis is not None
    async with trial.lab.redis.client() as client:
        ours = await client.execute_command("FUNCTION", "DUMP")
        async with client.pipeline(transaction=True) as at_once:  # clients must not see the library that is dumped
            at_once.execute_command("FUNCTION", "LOAD", "REPLACE", OLDER)
            at_once.execute_command("FUNCTION", "DUMP")
            at_once.execute_command("FUNCTION", "RESTORE", ours, "REPLACE")
            _, older, _ = await at_once.execute()
        await client.execute_command("FUNCTION", "RESTORE", older, "REPLACE")


async def roll(trial: Trial, channel: str) -> None:
    """Replace each node; each time, an older node starts too and loads its library."""
    lab = trial.lab
    for index in range(len(lab.nodes)):
        lab.nodes[index].terminate()
        await lab.nodes[index].wait(EXIT_WITHIN_S)
        await foreign(load_older)(trial, channel)
        await lab.restart_node(index)
    trial.figure(f"{trial.times} older libraries loaded")


def _fault(
    key: str, name: str, happen: Event, *, users_see: str = "nothing", are_early: bool = True, **how: Any
) -> Fault:
    return Fault(
        key=key,
        name=name,
        users_see=users_see,
        inject=partial(meanwhile, happen=happen, are_early=are_early),
        disconnects=True,  # the clients that were away
        needs_history=True,
        **how,
    )


# For clients that were away; and for connected ones, because nodes cannot know that they received everything.
DOUBTED: dict[str, Any] = {
    "users_see": "reported resyncs",
    "resyncs_max": 3,
    "is_random": False,  # the following faults would see its resyncs
}
DEPLOYMENT_FAULTS = (
    _fault("stray-prefix", "stray node with another prefix", stray(prefix="other"), is_in_ci=False),
    _fault("stray-database", "stray node in another database", stray(database=3), is_in_ci=False),
    _fault("stray-ruleless", "stray node without rules", stray()),
    _fault("stray-fewer", "stray node that keeps less", stray(rules=FEWER), is_in_ci=False),
    _fault("library-flush", "FUNCTION FLUSH", lost("FUNCTION", "FLUSH"), **DOUBTED, is_in_ci=False),
    _fault("library-delete", "FUNCTION DELETE", lost("FUNCTION", "DELETE", "snorky"), **DOUBTED, is_in_ci=False),
    _fault(
        "library-older",
        "older library loaded",
        foreign(load_older),
        **DOUBTED,
        are_early=False,  # so that no node receives what is not stored; only the nodes' own check can notice
    ),
    _fault("library-restored", "older library restored from a dump", foreign(restore_older), **DOUBTED, is_in_ci=False),
    _fault(
        "library-rolling",
        "two versions, rolling",
        roll,
        **DOUBTED,
        is_in_ci=False,
    ),
)
