"""snorky subscribe: print the messages of channels, as a client receives them."""

import asyncio
from contextlib import aclosing
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.markup import escape

from snorky.gateway.http.outbound.watch import listen
from snorky.gateway.protocol.codec import encode_json
from snorky.gateway.runtime.commands.common import (
    ChannelIsJson,
    Config,
    ServiceName,
    errors,
    fail,
    output,
    read_secret,
    read_settings,
    url_of_node,
)
from snorky.gateway.runtime.commands.publish import read_channel

__all__ = ["subscribe"]


def subscribe(
    channels: Annotated[list[str], typer.Argument(metavar="CHANNEL...", help="Channels to watch.", show_default=False)],
    url: Annotated[
        str | None,
        typer.Option("--url", "-u", help="Endpoint of a node or the load balancer. Default: from the settings."),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(
            "--token",
            "-t",
            help="The token to authenticate with: @FILE, - for a line of standard input, or the token itself, which "
            "all users of this machine can see in the list of processes.",
        ),
    ] = None,
    service: ServiceName = "pubsub",
    json_channel: ChannelIsJson = False,
    count: Annotated[int, typer.Option("--count", "-n", min=0, help="Exit after this many messages; 0: never.")] = 0,
    config: Config = None,
) -> None:
    """Subscribe to channels and print each message with its time and channel.

    Messages go to standard output, one a line; events of the connection go to standard error.

    Examples:

        snorky subscribe news sport

        snorky subscribe --token @token.txt news

        snorky subscribe --url wss://live.example.org/ws --count 1 news
    """
    if url is None:
        public = read_settings(config).public
        url = f"ws://{url_of_node(public.host, public.port)}/ws"
    endpoint, credential = url, read_secret(token, "--token")
    wanted = [read_channel(channel, is_json=json_channel) for channel in channels]
    try:
        asyncio.run(_watch(endpoint, credential, service, wanted, count))
    except ConnectionError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


async def _watch(url: str, token: str | None, service: str, channels: list[Any], count: int) -> None:
    seen = refused = 0
    async with aclosing(listen(url, service, channels, token=token)) as heard:
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
    """Escape control characters, so that received text cannot control the terminal."""
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
