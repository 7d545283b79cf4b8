"""snorky publish: publish messages to a channel through Redis, as a backend job does."""

import asyncio
import shlex
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from snorky.gateway.config.settings import Settings
from snorky.gateway.errors import ConfigurationError, InvalidInput
from snorky.gateway.http.outbound.publish import post_all
from snorky.gateway.protocol.codec import channel_key, decode_json, encode_json
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.runtime.commands.common import (
    ChannelIsJson,
    Config,
    ServiceName,
    fail,
    output,
    read_secret,
    read_settings,
    url_of_node,
)

if TYPE_CHECKING:
    from snorky.gateway.redis.admin.publish import Receipt

__all__ = ["publish", "read_channel"]

_READ_BYTES = 65_536


def publish(
    channel: Annotated[str, typer.Argument(help="The channel's name.", show_default=False)],
    message: Annotated[
        str, typer.Argument(metavar="JSON", help="The message, strict JSON; -: read one a line.", show_default=False)
    ],
    service: ServiceName = "pubsub",
    json_channel: ChannelIsJson = False,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--key",
            "-k",
            help="The node's api_key, needed without redis_url: @FILE, - for a line of standard input, or the key "
            "itself, which all users of this machine can see in the list of processes.",
        ),
    ] = None,
    config: Config = None,
) -> None:
    """Publish one message to a channel, on all nodes.

    The message goes to Redis directly: the settings redis_url and prefix are enough. The channel's rule, and with it
    its history, applies once a node has stored it in Redis. Without a redis_url the message goes to the private port of
    the node on this machine.

    Examples:

        snorky publish news '{"title": "Hello"}'

        snorky publish news '"just a text"'

        snorky publish --json-channel '["room", 5]' 42

        snorky publish --key @/run/secrets/api_key news 42

        tail -f events.jsonl | snorky publish news -
    """
    try:
        name = read_channel(channel, is_json=json_channel)
        key = channel_key(service, name)
        payload = b"" if message == "-" else encode_json(decode_json(message.encode("utf-8", "surrogateescape")))
    except InvalidInput as error:
        fail(f"the message is no JSON: {error}; {_remedy(channel, message)}", code=2)
    if message == "-" and api_key == "-":
        fail("standard input can hold either the messages or the key: write --key @FILE", code=2)
    settings, secret = read_settings(config), read_secret(api_key, "--key")
    try:
        if not settings.redis_url:
            batches = _lines() if message == "-" else [[payload]]
            sent = asyncio.run(
                post_all(_backend_url(settings, secret), f"{service}_backend", name, batches, key=secret)
            )
            output.print(f"{sent} published, by the node's backend")
            return
        from snorky.gateway.redis.admin.publish import publish_all, publish_once  # it loads redis-py: see `serve`

        target = targets_of(settings.redis_url).of(key)
        if message == "-":
            receipt = asyncio.run(publish_all(target, settings.prefix, key, _lines()))
            kept = f", the last one kept at {receipt.position}" if receipt.position else ""
            output.print(f"{receipt.count} published{kept}")
            return
        receipt = asyncio.run(publish_once(target, settings.prefix, key, payload))
    except (ConfigurationError, ConnectionError) as error:
        fail(str(error))
    output.print(_describe(receipt))


def _describe(receipt: "Receipt") -> str:
    kept = f"kept at {receipt.position}" if receipt.position else ""
    if receipt.nodes is None:
        return kept or "published"
    heard = f"{receipt.nodes} node{'' if receipt.nodes == 1 else 's'} received it"
    if kept:
        return f"{kept}; {heard}"
    return heard if receipt.nodes else f"{heard}: no node has a subscriber of this channel"


def _backend_url(settings: Settings, key: str | None) -> str:
    """Return the URL of the node's /backend, for a caller that does not share its Redis."""
    if settings.private.has_key and key is None:
        fail("no redis_url is set, and the backend needs a key, stored only as a hash: set redis_url, or --key @FILE")
    return f"http://{url_of_node(settings.private.host, settings.private.port)}/backend"


def _lines() -> Iterator[list[bytes]]:
    """Read messages from standard input, one a line, in batches of those already readable, without waiting for more.

    A line that is not JSON ends the command; the lines before it are published.
    """
    number, rest, is_open = 0, b"", True
    while is_open:
        data = sys.stdin.buffer.read1(_READ_BYTES)  # type: ignore[union-attr]  # a BufferedReader
        is_open = bool(data)
        *lines, rest = (rest + data).split(b"\n")
        if not is_open and rest:
            lines.append(rest)
        batch: list[bytes] = []
        for line in lines:
            number += 1
            try:
                batch.append(encode_json(decode_json(line.strip())))
            except InvalidInput as error:
                yield batch
                fail(f"line {number} is no JSON: {error}; the lines before it are published", code=2)
        if batch:
            yield batch


def read_channel(text: str, *, is_json: bool) -> Any:
    """Return the channel that the argument means, or end the command."""
    if not is_json:
        return text
    try:
        return decode_json(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        fail(f"the channel is no JSON: {error}; with --json-channel a string needs quotes: '\"news\"'", code=2)


def _remedy(channel: str, message: str) -> str:
    if len(message) > 60 or message[:1] in ("{", "["):
        return "write keys and strings in double quotes, and the whole message in single quotes for the shell"
    quoted = shlex.quote(encode_json(message.encode("utf-8", "replace").decode()).decode())
    return f"a text needs quotes of its own: snorky publish {shlex.quote(channel)} {quoted}"
