"""snorky subscribe: watch channels as a client sees them."""

import asyncio
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from gateway.codec import encode_json
from gateway.commands.common import ChannelIsJson, ServiceName, errors, fail, output
from gateway.commands.publish import read_channel
from gateway.http.client import listen

__all__ = ["subscribe"]


def subscribe(
    channels: Annotated[list[str], typer.Argument(metavar="CHANNEL...", help="Channels to watch.", show_default=False)],
    url: Annotated[str, typer.Option("--url", "-u", help="A node's or the load balancer's endpoint.")] = (
        "ws://127.0.0.1:8002/ws"
    ),
    service: ServiceName = "pubsub",
    json_channel: ChannelIsJson = False,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="End after so many messages; 0: never.")] = 0,
) -> None:
    """Subscribe to channels and print what comes: time, channel, message.

    Messages go to standard output, one a line; what happens to the connection to standard error.

    Examples:

        snorky subscribe news sport

        snorky subscribe --url wss://live.example.org/ws --count 1 news
    """
    wanted = [read_channel(channel, is_json=json_channel) for channel in channels]
    try:
        asyncio.run(_watch(url, service, wanted, count))
    except ConnectionError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _watch(url: str, service: str, channels: list[Any], count: int) -> None:
    seen = refused = 0
    async with aclosing(listen(url, service, channels)) as heard:
        async for each in heard:
            now = datetime.now().astimezone().strftime("%H:%M:%S.%f")[:-3]
            if each.kind == "message":
                output.print(f"[dim]{now}[/] [bold cyan]{_shown(each.channel)}[/] {_shown(each.message, quotes=True)}")
                seen += 1
                if count and seen >= count:
                    return
            elif each.kind == "error":
                errors.print(f"[dim]{now}[/] [red]{_shown(each.channel)}: {escape(_printable(each.text))}[/]")
                refused += each.channel is not None
                if refused >= len(channels):
                    raise ConnectionError("no channel could be subscribed to")
            else:
                errors.print(f"[dim]{now} {escape(_printable(each.text))}[/]")


def _shown(value: Any, *, quotes: bool = False) -> str:
    text = value if isinstance(value, str) and not quotes else encode_json(value).decode()
    return escape(_printable(text))


def _printable(text: str) -> str:
    """Keep what others wrote from moving the cursor."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
