"""snorky stats: the nodes of a cluster with live counts and rates, from the states that they write to Redis."""

import asyncio
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.directory.lease import Timings
from snorky.gateway.redis.directory.node_states import NodeState
from snorky.gateway.redis.keys import nodes_key
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.runtime.commands.common import Config, fail, output, read_settings

__all__ = ["stats"]

_RATES = {  # heading: the counter that the rate is computed from
    "deliveries/s": "deliveries_total",
    "publications/s": "publications_received_total",
    "messages in/s": "messages_received_total",
    "KiB out/s": "sent_bytes_total",
}
_AGAIN_S = 0.1
_SILENT_S = 5.0  # a node that has written nothing for this long has no rate: two of its renewals are missing
_TIMINGS = Timings()
_SIZES = ("connections", "subscriptions", "channels")


def stats(
    config: Config = None,
    interval_s: Annotated[float, typer.Option("--interval", "-i", min=0.2, help="Seconds between updates.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Read twice, print one table, exit.")] = False,
) -> None:
    """Show every node with its connections, channels and rates; press Ctrl-C to exit.

    Nodes write their numbers every 2 s, so rates are averages over that time.

    Examples:

        SNORKY_REDIS_URL=redis://127.0.0.1:6379/0 snorky stats

        snorky stats --config /etc/snorky.toml --once
    """
    settings = read_settings(config)
    if not settings.redis_url:
        fail("no redis_url is set, so there is no cluster to show: set it, or see /metrics on the private port")
    try:
        asyncio.run(_show(targets_of(settings.redis_url), settings.prefix, interval_s, once))
    except (ConfigurationError, ConnectionError) as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _show(targets: Iterable[RedisTarget], prefix: str, interval_s: float, once: bool) -> None:
    from snorky.gateway.redis.admin.inspect import reading  # here, because it loads redis-py: see `serve`
    from snorky.gateway.redis.admin.nodes import read_all_nodes

    meter = Meter()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(reading(target.of(nodes_key(prefix)))) for target in targets]
        if once:
            meter.look(await read_all_nodes(clients, prefix), time.monotonic())
            late_s = time.monotonic() + _TIMINGS.ttl_s
            await asyncio.sleep(max(interval_s, _TIMINGS.renew_s))
            meter.look(await read_all_nodes(clients, prefix), time.monotonic())
            while meter.is_waiting and time.monotonic() < late_s:
                await asyncio.sleep(_AGAIN_S)  # there is no event when a node has written
                meter.look(await read_all_nodes(clients, prefix), time.monotonic())
            output.print(meter.table())
            return
        with Live(console=output, auto_refresh=False, transient=False) as live:
            while True:
                meter.look(await read_all_nodes(clients, prefix), time.monotonic())
                live.update(meter.table(), refresh=True)
                await asyncio.sleep(interval_s)


class Meter:
    """Computes rates from counters: the difference between a node's last two samples, divided by their time difference.

    The times are those of the node's own clock when it took the samples: a sample may be 2 s old when it is read.
    Nodes of older versions write no time; for them the reader's clock is used.
    """

    def __init__(self) -> None:
        self._nodes: list[NodeState] = []
        self._last: dict[str, tuple[float, NodeState]] = {}  # the last sample, and when it was first seen
        self._rates: dict[str, dict[str, float]] = {}

    @property
    def is_waiting(self) -> bool:
        """True while a node has written nothing new since it was first seen."""
        return any(node.node_id not in self._rates for node in self._nodes)

    def look(self, nodes: Sequence[NodeState], now_s: float) -> None:
        """Process the states that were read at now_s (monotonic)."""
        self._nodes = sorted(nodes, key=lambda node: node.node_id)
        known = {node.node_id for node in nodes}
        self._last = {name: last for name, last in self._last.items() if name in known}
        self._rates = {name: rates for name, rates in self._rates.items() if name in known}
        for node in self._nodes:
            name = node.node_id
            if name not in self._last:
                self._last[name] = (now_s, node)
                continue
            at_s, before = self._last[name]
            between_s = _sampled_s(node, now_s) - _sampled_s(before, at_s)
            if before != node and between_s > 0:  # otherwise one of several Redis servers returned an older sample
                self._rates[name] = {
                    total: max(0.0, _number(node, total) - _number(before, total)) / between_s
                    for total in _RATES.values()
                }
                self._last[name] = (now_s, node)
            elif now_s - at_s > _SILENT_S:
                self._rates[name] = {}

    def rate(self, name: str, total: str) -> float:
        """Return the rate of a node's counter, per second; 0.0 while unknown."""
        return self._rates.get(name, {}).get(total, 0.0)

    def table(self) -> Table:
        """Make the table of the present state."""
        table = Table(title=f"{len(self._nodes)} nodes", title_justify="left", show_footer=len(self._nodes) > 1)
        table.add_column("node", footer="all")
        table.add_column("where")
        table.add_column("version")
        for name in _SIZES:
            table.add_column(name, justify="right", footer=f"{sum(_number(node, name) for node in self._nodes):,.0f}")
        for heading, total in _RATES.items():
            whole = sum(self.rate(node.node_id, total) for node in self._nodes)
            table.add_column(heading, justify="right", footer=_shown(heading, whole))
        table.add_column("state")
        for node in self._nodes:
            name = node.node_id
            table.add_row(
                escape(name),
                escape(str(node.state.get("public_url", ""))),
                escape(str(node.state.get("version", ""))),
                *(f"{_number(node, size):,.0f}" for size in _SIZES),
                *(_shown(heading, self.rate(name, total)) for heading, total in _RATES.items()),
                _state(node),
            )
        return table


def _shown(heading: str, rate: float) -> str:
    return f"{rate / 1024 if heading.startswith('KiB') else rate:,.0f}"


def _number(node: NodeState, name: str) -> float:
    value = node.state.get(name)
    return float(value) if isinstance(value, int | float) else 0.0


def _sampled_s(node: NodeState, seen_s: float) -> float:
    return _number(node, "sampled_s") if "sampled_s" in node.state else seen_s


def _state(node: NodeState) -> Text:
    if node.state.get("is_redis_unverified"):
        return Text("redis unverified", style="bold red")
    return Text("draining", style="yellow") if node.state.get("is_draining") else Text("ready", style="green")
