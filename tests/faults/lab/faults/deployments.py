"""Several deployments, versions and mistakes on one Redis: what is acknowledged is kept; else the client is told.

Each of them happens while all subscribers of one channel are away: no node hears that channel meanwhile. They come back
when the nodes have repaired what there was to repair; in most rows half of them in the middle of it.
"""

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

from tests.faults.lab.plan import PREFIX
from tests.faults.lab.trial import Fault, Trial
from tests.support.nodes import GATEWAY, NodeProcess
from tests.support.tools import eventually

__all__ = ["DEPLOYMENT_FAULTS"]

# As a version that knows no rules of this prefix: it sends, and keeps nothing.
OLDER = """#!lua name=snorky
-- format 1
redis.register_function('snorky_publish', function(keys, args)
  redis.call('PUBLISH', keys[1], args[1])
  return ''
end)
"""
REPAIRED_WITHIN_S = 4.0  # two looks of a node
REGISTERED_WITHIN_S = 15.0
EXIT_WITHIN_S = 40.0
UNKEPT_TRIES = 5  # a node may look right behind the foreign library
BEYOND = 5  # numbers of each channel: before, and when all is sound again
STAY = 25  # numbers of each channel while a stray node is there
FEWER = """
[services.pubsub]
class = "services.pubsub:PubSubService"
[[services.pubsub.channels]]
match = "lab:*"
history = 1
"""

Event = Callable[[Trial, str], Awaitable[None]]


async def meanwhile(trial: Trial, *, happen: Event, are_early: bool) -> None:
    """Let it happen to a channel whose subscribers are away."""
    lab = trial.lab
    channel = lab.rng.choice(lab.plan.channel_names[::2])  # these are published to by the function
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
    trial.figure(f"{len(absent)} away, {len(early)} of them back at once; {unkept} not kept")


async def _is_sound(trial: Trial) -> bool:
    return "-- body" in str(await _command(trial, "FUNCTION", "LIST", "LIBRARYNAME", "snorky", "WITHCODE"))


async def _command(trial: Trial, *words: object) -> object:
    assert trial.lab.redis is not None
    async with trial.lab.redis.client() as client:
        return await client.execute_command(*words)


def stray(*, rules: str = "", prefix: str = PREFIX, database: int = 0) -> Event:
    """A node of another deployment, or with a mistake in its settings, comes and goes."""

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
        trial.expect(not unkept, f"{unkept} publications were not kept")

    return happen


def foreign(load: Callable[[Trial], Awaitable[None]]) -> Event:
    """A library that keeps nothing replaces the nodes', until something was published by it on the channel."""

    async def happen(trial: Trial, channel: str) -> None:
        uncertain = trial.lab.load.uncertain
        before = len(uncertain)

        async def is_over() -> bool:
            return is_unkept() or await _is_sound(trial)

        def is_unkept() -> bool:
            return any(one.is_unkept and one.channel == channel for one in uncertain[before:])

        for _ in range(UNKEPT_TRIES):
            await load(trial)
            await eventually(is_over, within_s=REPAIRED_WITHIN_S, what="a publication is not kept, or a node repairs")
            if is_unkept():
                return
        trial.expect(False, "nothing was published by the foreign library: nothing was tried")

    return happen


def lost(*words: object) -> Event:
    """The library goes: publishes are refused until a node has loaded it again."""

    async def happen(trial: Trial, _channel: str) -> None:
        repairs = await trial.lab.metric("snorky_redis_library_repairs_total")
        await _command(trial, *words)

        async def is_repaired() -> bool:
            return await trial.lab.metric("snorky_redis_library_repairs_total") > repairs

        await eventually(is_repaired, within_s=REPAIRED_WITHIN_S, what="a node has repaired it")

    return happen


async def load_older(trial: Trial) -> None:
    """As an older node does at its start, or somebody by hand."""
    await _command(trial, "FUNCTION", "LOAD", "REPLACE", OLDER)


async def restore_older(trial: Trial) -> None:
    """FUNCTION RESTORE of a dump of then."""
    assert trial.lab.redis is not None
    async with trial.lab.redis.client() as client:
        ours = await client.execute_command("FUNCTION", "DUMP")
        async with client.pipeline(transaction=True) as at_once:  # nobody is to see the library that is dumped
            at_once.execute_command("FUNCTION", "LOAD", "REPLACE", OLDER)
            at_once.execute_command("FUNCTION", "DUMP")
            at_once.execute_command("FUNCTION", "RESTORE", ours, "REPLACE")
            _, older, _ = await at_once.execute()
        await client.execute_command("FUNCTION", "RESTORE", older, "REPLACE")


async def roll(trial: Trial, channel: str) -> None:
    """Each node is replaced; each time, an older one starts too and loads its library."""
    lab = trial.lab
    for index in range(len(lab.nodes)):
        lab.nodes[index].terminate()
        await lab.nodes[index].wait(EXIT_WITHIN_S)
        await foreign(load_older)(trial, channel)
        await lab.restart_node(index)


def _fault(
    key: str, name: str, happen: Event, *, users_see: str = "nothing", are_early: bool = True, **how: Any
) -> Fault:
    return Fault(
        key=key,
        name=name,
        users_see=users_see,
        inject=partial(meanwhile, happen=happen, are_early=are_early),
        disconnects=True,  # those that were away
        needs_history=True,
        **how,
    )


# Of who was away; and of who is connected, for nodes cannot know that it had all.
DOUBTED: dict[str, Any] = {
    "users_see": "honest resyncs",
    "resyncs_max": 3,
    "is_random": False,  # the faults behind it would see its resyncs
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
        are_early=False,  # so no node hears what is not kept, and the nodes' doubt alone is left
    ),
    _fault("library-restored", "older library restored from a dump", foreign(restore_older), **DOUBTED, is_in_ci=False),
    _fault(
        "library-rolling",
        "two versions, rolling",
        roll,
        **{**DOUBTED, "resyncs_max": 9},  # each node's clients move, each time a library was replaced
        is_in_ci=False,
    ),
)
