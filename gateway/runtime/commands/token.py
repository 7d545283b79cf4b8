"""snorky token: mint a token for a client, with the key of the node's settings or one from a file."""

import time
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from snorky.gateway.auth.minting import Minter, SigningKey
from snorky.gateway.config.auth import Auth
from snorky.gateway.errors import InvalidInput
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.runtime.commands.common import ChannelIsJson, Config, fail, read_settings
from snorky.gateway.runtime.commands.publish import read_channel

__all__ = ["token"]

_PUBSUB: Final = "pubsub"
_KEY_MAX_BYTES: Final = 65_536  # a PEM of RSA with 16,384 bits has 12 KB


def token(
    identity: Annotated[
        str | None,
        typer.Argument(metavar="[IDENTITY]", help="Whom the token is for; '~7' is the integer 7.", show_default=False),
    ] = None,
    expires_in_s: Annotated[int, typer.Option("--expires-in", min=1, metavar="SECONDS", help="Time to live.")] = 3600,
    channel: Annotated[
        str | None,
        typer.Option("--channel", metavar="CHANNEL", help="Mint a subscription token, for this channel only."),
    ] = None,
    operations: Annotated[
        list[str] | None,
        typer.Option(
            "--op",
            metavar="OPERATION",
            help="With --channel, again for each: what it permits. Default: subscribe, history, presence.",
        ),
    ] = None,
    info: Annotated[
        str | None, typer.Option("--info", metavar="JSON", help="With --channel: data about the subscriber.")
    ] = None,
    anonymous: Annotated[
        bool, typer.Option("--anonymous", help="With --channel: for every client without an identity.")
    ] = False,
    channels: Annotated[
        list[str] | None,
        typer.Option(
            "--channels",
            metavar="PATTERN=OPERATIONS",
            help="Again for each pattern: what the client may do on these channels. * matches any characters.",
        ),
    ] = None,
    claims: Annotated[
        list[str] | None,
        typer.Option("--claim", metavar="NAME=JSON", help="Again for each: a claim for rules and hooks."),
    ] = None,
    service: Annotated[
        str, typer.Option("--service", "-s", help="The service of --channel and --channels.", metavar="NAME")
    ] = _PUBSUB,
    json_channel: ChannelIsJson = False,
    private_key: Annotated[
        Path | None,
        typer.Option("--private-key", metavar="FILE", help="Sign with this key, a PEM; RSA or P-256, not encrypted."),
    ] = None,
    key_id: Annotated[str | None, typer.Option("--key-id", metavar="ID", help="The key's id in the JWKS.")] = None,
    config: Config = None,
) -> None:
    """Mint a token, and print it on standard output.

    Nodes with the same settings accept it: it is signed with [auth] hmac_secret, or with --private-key, and has their
    audience and issuer. Anyone who has the token can use it until it expires or is revoked.

    Examples:

        snorky token alice

        snorky token alice --expires-in 600 --channels 'orders:*=subscribe,history' --claim 'shops=["7"]'

        snorky token alice --channel orders:7 --op subscribe

        snorky token --anonymous --channel news

        snorky token '~7' --private-key /run/secrets/tokens.pem --key-id 2026-11
    """
    if (identity is None) != anonymous:
        fail("write either an IDENTITY or --anonymous", code=2)
    if channel is None and (operations or info is not None or json_channel):
        fail("--op, --info and --json-channel belong to --channel", code=2)
    if channel is not None and (channels or claims):
        fail("--channels and --claim belong to a connection token: leave --channel out", code=2)
    if service != _PUBSUB and channel is None and not channels:
        fail("--service belongs to --channel or --channels", code=2)
    wanted = None if channel is None else read_channel(channel, is_json=json_channel)
    data = None if info is None else _json("--info", info)
    permissions = _permissions(channels or [])
    further = _claims(claims or [])
    auth = read_settings(config).auth
    minter = Minter(_key(auth, private_key, key_id), auth)
    who, now_s = None if identity is None else _identity(identity), time.time()
    try:
        if channel is None:
            if who is None:
                fail("--anonymous needs --channel: a connection token always has an identity", code=2)
            minted = minter.connection_token(
                who,
                now_s=now_s,
                expires_in_s=expires_in_s,
                claims=further,
                channels=permissions if permissions and service == _PUBSUB else None,
                services={service: permissions} if permissions and service != _PUBSUB else None,
            )
        else:
            minted = minter.subscription_token(
                who,
                wanted,
                now_s=now_s,
                expires_in_s=expires_in_s,
                ops=operations or None,
                service=None if service == _PUBSUB else service,
                info=data,
            )
    except ValueError as error:
        fail(str(error))
    typer.echo(minted)


def _identity(text: str) -> str | int:
    """Return the identity that an argument means; `~7`, as nodes write it, is the integer 7."""
    digits = text.removeprefix("~")
    is_integer = text.startswith("~") and digits.removeprefix("-").isdecimal() and digits.isascii() and len(text) <= 20
    return int(digits) if is_integer else text


def _key(auth: Auth, private_key: Path | None, key_id: str | None) -> SigningKey:
    """Choose the key, or end the command."""
    if private_key is None:
        if auth.hmac_secret is not None:
            return SigningKey.hmac(auth.hmac_secret, key_id)
        if auth.has_keys:
            fail("the settings have only public keys, which cannot sign: write --private-key FILE")
        fail("no key to sign with: set [auth] hmac_secret (SNORKY_AUTH__HMAC_SECRET), or write --private-key FILE")
    if auth.hmac_secret is not None:
        fail("nodes with these settings verify tokens by [auth] hmac_secret: leave --private-key out")
    try:
        with private_key.open("rb") as file:
            key = SigningKey.private(file.read(_KEY_MAX_BYTES), key_id)
    except OSError as error:
        fail(f"--private-key: {private_key} cannot be read: {error.strerror}")
    except ValueError as error:
        fail(f"--private-key: {private_key}: {error}")
    public_keys = [each for each in (auth.public_key, auth.public_key_previous) if each is not None]
    if public_keys and key.public_key not in public_keys:
        fail("--private-key does not belong to [auth] public_key, so nodes would refuse the token")
    return key


def _permissions(written: list[str]) -> dict[str, list[str]]:
    """Read PATTERN=OPERATION,OPERATION; a pattern may contain `=`."""
    found: dict[str, list[str]] = {}
    for text in written:
        pattern, equals, operations = text.rpartition("=")
        if not equals or not pattern:
            fail(
                f"--channels: write a pattern and operations, as in 'orders:*=subscribe,history', not {text!r}", code=2
            )
        if pattern in found:
            fail(f"--channels: {pattern} is written twice: list all its operations in one", code=2)
        found[pattern] = [operation.strip() for operation in operations.split(",")]
    return found


def _claims(written: list[str]) -> dict[str, Any]:
    """Read NAME=JSON."""
    found: dict[str, Any] = {}
    for text in written:
        name, equals, value = text.partition("=")
        if not equals or not name:
            fail(f"--claim: write a name and JSON, as in 'shops=[\"7\"]', not {text!r}", code=2)
        if name in found:
            fail(f"--claim: {name} is written twice", code=2)
        found[name] = _json(f"--claim {name}", value)
    return found


def _json(option: str, text: str) -> Any:
    try:
        return decode_json(text.encode("utf-8", "surrogateescape"))
    except InvalidInput as error:
        fail(f"{option}: the value is no JSON: {error}; a text needs quotes of its own: '\"text\"'", code=2)
