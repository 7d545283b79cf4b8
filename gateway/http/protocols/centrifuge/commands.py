"""Commands of Centrifuge clients; each becomes an envelope. Pure.

The `callId` of an envelope is a `Call`: so the reply says which command it answers, and a connection keeps no list.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.protocols.centrifuge.rendering import PUBSUB
from snorky.gateway.protocol.codec import Envelope, Json, Verbatim, decode_json

__all__ = ["Call", "Command", "Unavailable", "command_of", "envelope_of", "positions_of"]

AUTH: Final = "auth"
METHODS: Final = frozenset(
    (
        "connect",
        "history",
        "ping",
        "presence",
        "presence_stats",
        "publish",
        "refresh",
        "rpc",
        "send",
        "sub_refresh",
        "subscribe",
        "unsubscribe",
    )
)
_SERVICE: Final = re.compile("[a-z0-9_-]+")
HISTORY_MAX: Final = 300  # publications in one reply
_REJECTS_UNRECOVERED: Final = 2  # in `flag` of subscribe


class Unavailable(Exception):
    """A command that no service takes."""


@dataclass(frozen=True, slots=True)
class Command:
    """One command. id: 0 = it has none. params: of its method."""

    id: int
    method: str
    params: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """The facts about a command that its reply needs. since: the client's offset; None = it does not recover."""

    id: int
    method: str
    channel: str = ""
    since: int | None = None
    rejects_unrecovered: bool = False

    def written(self) -> list[Json]:
        """Return it as a `callId`."""
        return [self.id, self.method, self.channel, self.since, self.rejects_unrecovered]

    @classmethod
    def read(cls, call_id: Any) -> "Call | None":
        """Read a `callId`; None = a message has none."""
        return cls(*call_id) if isinstance(call_id, list) and len(call_id) == 5 else None


def command_of(value: Mapping[str, Json]) -> Command | None:
    """Check a decoded command; None = a pong. Raises InvalidMessage."""
    if not value:
        return None
    number, methods = value.get("id", 0), METHODS & value.keys()
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**32 or len(methods) != 1:
        raise InvalidMessage("A command has an id and one method")
    (method,) = methods
    params = value[method]
    if params is None:
        params = {}
    if not isinstance(params, dict) or (number == 0) is not (method == "send"):
        raise InvalidMessage("A command has an id and the parameters of its method")
    return Command(number, method, params)


def envelope_of(command: Command) -> Envelope:
    """Translate a command, except `connect` without a token, `ping` and `send`.

    Raises InvalidMessage: its parameters are not valid; Unavailable.
    """
    params, channel = command.params, command.params.get("channel")
    if command.method in ("connect", "refresh"):
        name = "authenticate" if command.method == "connect" else "refresh"
        return _call(command, AUTH, name, {"token": _text(params.get("token"))})
    if command.method == "rpc":
        return _rpc(command)
    if command.method == "sub_refresh":
        token = _text(params.get("token"))
        channel = _text(channel or _channel_of(token))
        return _call(command, PUBSUB, "refreshSubscription", {"channel": channel, "token": token}, channel)
    where: dict[str, Json] = {"channel": _text(channel)}
    if command.method == "subscribe":
        return _subscribe(command, where["channel"])
    if command.method == "publish":
        if "data" not in params:
            raise InvalidMessage("publish needs data")
        where["message"] = params["data"]
        return _call(command, PUBSUB, "publish", where)
    if command.method == "history":
        return _call(command, PUBSUB, "history", where | _page(params))
    if command.method == "presence":
        return _call(command, PUBSUB, "presence", where | {"connections": True})
    name = "presenceStats" if command.method == "presence_stats" else "unsubscribe"
    return _call(command, PUBSUB, name, where, where["channel"])


def positions_of(command: Command) -> dict[str, tuple[int, str]]:
    """Return from where `connect` recovers the server's subscriptions: by channel the offset, and the position."""
    subs = command.params.get("subs")
    found = {}
    for channel, asked in subs.items() if isinstance(subs, dict) else ():
        if isinstance(asked, dict) and asked.get("recover"):
            found[channel] = _place_in(asked)
    return found


def _call(
    command: Command,
    service: str,
    name: str,
    params: dict[str, Json],
    channel: Any = "",
    since: int | None = None,
    *,
    rejects_unrecovered: bool = False,
) -> Envelope:
    call = Call(command.id, command.method, channel, since, rejects_unrecovered)
    return Envelope(service, {"command": name, "params": params, "callId": call.written()})


def _subscribe(command: Command, channel: Any) -> Envelope:
    params, wanted = command.params, {"channel": channel, "recover": True}
    since: int | None = None
    if params.get("recover"):
        since, wanted["recover"] = _place_in(params)
    if params.get("token"):
        wanted["token"] = _text(params["token"])
    rejects = bool(_number(params.get("flag", 0)) & _REJECTS_UNRECOVERED)
    return _call(command, PUBSUB, "subscribe", wanted, channel, since, rejects_unrecovered=rejects)


def _page(params: dict[str, Any]) -> dict[str, Json]:
    limit = _number(params.get("limit", 0), may_be_negative=True)
    page: dict[str, Json] = {
        "limit": HISTORY_MAX if limit < 0 else min(limit, HISTORY_MAX),
        "order": "newest" if params.get("reverse") else "oldest",
    }
    since = params.get("since")
    if isinstance(since, dict):
        _, page["since"] = _place_in(since)
    return page


def _place_in(params: dict[str, Any]) -> tuple[int, str]:
    """Read an offset and an epoch; returns the offset, and both as a position without a tag."""
    offset, epoch = _number(params.get("offset", 0)), params.get("epoch", "")
    return offset, f"{_text(epoch) if epoch else ''}:{offset}"


def _rpc(command: Command) -> Envelope:
    service, _, name = _text(command.params.get("method")).partition(".")
    params = command.params.get("data", {})
    if not name or service in (PUBSUB, AUTH) or not _SERVICE.fullmatch(service):
        raise Unavailable
    if isinstance(params, Verbatim):
        params = params.value
    if not isinstance(params, dict):
        raise InvalidMessage("data of an rpc is an object: the parameters of the command")
    return _call(command, service, name, params)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidMessage("A text is missing")
    return value


def _number(value: Any, *, may_be_negative: bool = False) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or abs(value) >= 2**53
        or (value < 0 < 1 - may_be_negative)
    ):
        raise InvalidMessage("A number is not valid")
    return value


def _channel_of(token: str) -> str:
    """Read the channel of a subscription token, which is not verified here: some clients send the token alone."""
    try:
        payload = token.split(".")[1]
        claims = decode_json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, binascii.Error, ValueError, InvalidMessage):
        raise InvalidMessage("The token names no channel") from None
    return _text(claims.get("channel") if isinstance(claims, dict) else None)
