"""snorky capacity: the nodes and Redis servers that a load needs, computed from measured costs."""

from pathlib import Path
from typing import Annotated

import msgspec
import typer

from snorky.gateway.runtime.commands.capacity_model import BUSY, CONNECTIONS_MAX, Figures, Load, Plan, plan
from snorky.gateway.runtime.commands.common import fail
from snorky.gateway.runtime.commands.memory import written

__all__ = ["capacity"]


def capacity(
    connections: Annotated[float, typer.Option(min=1, help="Clients that are connected at once.")],
    channels: Annotated[float, typer.Option(min=1, help="Channels that have subscribers.")],
    publishes: Annotated[float, typer.Option(min=0, help="Publications per second, to all channels.")],
    fanout: Annotated[float, typer.Option(min=0, help="Subscribers of a channel.")],
    payload_bytes: Annotated[float, typer.Option("--payload", min=1, help="Bytes of a publication.")] = 100,
    kept: Annotated[float, typer.Option(min=0, max=1, help="Part of the publications that a history keeps.")] = 0,
    connects_per_s: Annotated[float, typer.Option("--connects", min=0, help="New connections per second.")] = 0,
    memory_gib: Annotated[float, typer.Option("--memory", min=0.25, help="GiB of memory for each node.")] = 4,
    interface_gbps: Annotated[
        float, typer.Option("--network", min=0.01, help="Gbit/s of the network, for each node and each Redis server.")
    ] = 10,
    connections_max: Annotated[int, typer.Option(min=1, help="[limits] connections of each node.")] = CONNECTIONS_MAX,
    file: Annotated[
        Path | None,
        typer.Option("--figures", metavar="FILE", help="Costs on your machine, from the benchmark. Default: ours."),
    ] = None,
) -> None:
    """Estimate how many nodes and Redis servers a load needs, and what limits it first.

    A node is one process, which uses one core. The model and its errors are in docs/capacity.md.

    Examples:

        snorky capacity --connections 1e5 --channels 1e4 --publishes 1000 --fanout 50

        snorky capacity --connections 1e7 --channels 1e6 --publishes 5e4 --fanout 200 --kept 0.5
    """
    load = Load(connections, channels, publishes, fanout, payload_bytes, kept, connects_per_s)
    try:
        found = plan(
            load,
            _read(file),
            memory_bytes=memory_gib * (1 << 30),
            interface_bps=interface_gbps * 1e9,
            connections_max=connections_max,
        )
    except ValueError as error:
        fail(str(error))
    for line in _lines(load, found):
        typer.echo(line)


def _read(file: Path | None) -> Figures:
    if file is None:
        return Figures()
    try:
        return msgspec.json.decode(file.read_bytes(), type=_Run).figures
    except OSError as error:
        fail(f"{file}: {error.strerror}", code=2)
    except msgspec.DecodeError as error:
        fail(f'{file} is not the output of make bench ARGS="--only capacity --json": {error}', code=2)


class _Run(msgspec.Struct):
    figures: Figures


def _lines(load: Load, found: Plan) -> list[str]:
    first = max(found.nodes_by, key=lambda what: found.nodes_by[what])
    least = ", ".join(f"{count:,} by {what}" for what, count in found.nodes_by.items())
    lines = [
        f"load     {load.publishes_per_s:,.0f} publications/s to {load.fanout:,.0f} clients each: "
        f"{load.deliveries_per_s:,.0f} deliveries/s; {load.connections:,.0f} connections",
        f"nodes    {found.nodes:,}, a core each; at least {least}",
        f"         each: core {found.node_cpu:.0%} busy ({found.joined_cpu:.0%} while it joins messages), "
        f"{written(int(found.node_bytes))}, "
        f"{load.connections / found.nodes:,.0f} connections",
        f"Redis    servers: {found.redis:,}; in all {found.redis_cpu:,.2f} cores, "
        f"{_rate(found.redis_bps)} to the nodes; a publication goes to {found.receivers:,.1f} nodes",
        f"clients  {_rate(found.client_bps)} in all, {_rate(found.client_bps / found.nodes)} from each node",
        f"first    {first} limits the nodes",
    ]
    if found.node_cpu >= 1:
        lines.append("         their cores are always busy: they join messages, which costs milliseconds, not messages")
    if found.redis > 1:
        lines.append("         one Redis server is not enough: list several in redis_url, or use a Cluster")
    if found.receivers > 2 and found.receivers > load.fanout / 2:
        lines.append("         a channel's clients are on many nodes: let the balancer send them to the same ones")
    return [*lines, f"Planned for {BUSY:.0%} of what each server has; cores while they join messages."]


def _rate(bits: float) -> str:
    return f"{bits / 1e9:,.2f} Gbit/s" if bits >= 1e8 else f"{bits / 1e6:,.2f} Mbit/s"
