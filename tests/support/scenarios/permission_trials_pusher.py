"""The table by the token, for Pusher's clients.

in the handshake         a connection token, in the header of the WebSocket
in `authenticate`        `pusher:signin`: the signature of a user
in `subscribe`           `pusher:subscribe`: the signature of a private or presence channel
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final

from tests.support.clients.pusher import (
    KEY,
    SECRET,
    PusherClient,
    SubscriptionFailed,
    connected,
    dialled,
    member,
    signed,
)
from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import NodeStage
from tests.support.scenarios.permission_trials import (
    BY_IDENTITY,
    BY_JTI,
    CONNECTED,
    EXPIRED,
    HANDSHAKE,
    LOGIN,
    NONE_REQUIRED,
    OTHER_TOKEN_SECRET,
    SUBSCRIBE,
    SUBSCRIBED,
    Cell,
    Findings,
    past,
    soon,
)
from tests.support.scenarios.tokens import hmac_token

__all__ = ["APPS", "WITHOUT_MEANING", "PusherTrial", "in_pusher", "try_required_of_pusher", "try_signatures"]

OTHER_APP_KEY, OTHER_APP_SECRET = (
    "staging-key",
    "b7e04c92d15a4f38865d0e17ca29f43b",
)  # of another app, with another service
APPS: Final = {
    "SNORKY_SERVICES__STAGING__CLASS": "snorky.services.pubsub:PubSubService",
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__KEY": KEY,
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SECRET": SECRET,
    "SNORKY_PUBLIC__PUSHER_APPS__SHOP__SERVICE": "pubsub",
    "SNORKY_PUBLIC__PUSHER_APPS__STAGING__KEY": OTHER_APP_KEY,
    "SNORKY_PUBLIC__PUSHER_APPS__STAGING__SECRET": OTHER_APP_SECRET,
    "SNORKY_PUBLIC__PUSHER_APPS__STAGING__SERVICE": "staging",
}
WITHOUT_MEANING: Final[Mapping[Cell, str]] = {
    **dict.fromkeys([(EXPIRED, each) for each in (LOGIN, SUBSCRIBE, SUBSCRIBED)], "a signature does not expire"),
    **dict.fromkeys([(BY_JTI, each) for each in (LOGIN, SUBSCRIBE, SUBSCRIBED)], "a signature has no `jti`"),
    (BY_IDENTITY, LOGIN): "a signature has no time, so it is not known to be from before the revocation",
    (BY_IDENTITY, SUBSCRIBE): "a signature is for one connection, which the revocation ends, and has no time",
    ("without the operation", SUBSCRIBE): "each signature of a channel permits to subscribe",
    (NONE_REQUIRED, HANDSHAKE): "the client may stay: private channels need a signature, and no identity",
}
OPEN, KNOWN = "open", "known"  # public channels: of anyone, of clients with an identity
CHANNELS: Final = {"private-c": None, "presence-c": member("7")}  # with their `channel_data`
UNAUTHORIZED: Final = "`401`"  # the status of a refused subscription
WORDS: Final[Mapping[tuple[str, str], str]] = {
    (LOGIN, "`already_authenticated`"): "4009",
    (SUBSCRIBE, "`invalid_token`"): UNAUTHORIZED,
    (SUBSCRIBE, "`not_authorized`"): UNAUTHORIZED,
    (SUBSCRIBE, "`not_authenticated`"): UNAUTHORIZED,
}

Make = Callable[[PusherClient, str, str | None], str | None]  # client, channel, `channel_data`: `auth`, or none


def in_pusher(_row: str, column: str, text: str) -> tuple[str]:
    """Translate a cell to what Pusher's clients receive: close codes, and the status of a refused subscription."""
    if text == "yes":
        return (text,)
    return ("4009",) if text in ("4501", "4503") else (WORDS[column, text],)


async def result_of(client: PusherClient, wait: Awaitable[Any]) -> str:
    """Wait for a success; returns "yes", the status of the refusal, or the close code."""
    try:
        await wait
    except SubscriptionFailed as refused:
        return f"`{refused.status}`"
    except AssertionError:
        if client.end is None:
            raise
        return str(client.end[0])
    return "yes"


async def subscribing(client: PusherClient, channel: str, data: str | None = None, auth: str | None = None) -> str:
    """Subscribe with this `auth`, or without one; returns the result."""
    fields = {"channel": channel, "channel_data": data, "auth": auth}
    await client.send("pusher:subscribe", {name: value for name, value in fields.items() if value is not None})
    return await result_of(client, client.subscribed(channel))


class PusherTrial(Findings):
    """Clients of one app, each with an identity of its own."""

    def __init__(self, nodes: NodeStage) -> None:
        super().__init__(TransportStage(nodes, ["json"], None), "pusher")
        self.url = f"http://127.0.0.1:{nodes.nodes[0].public_port}"

    @asynccontextmanager
    async def client(self, **claims: Any) -> AsyncIterator[PusherClient]:
        """Connect with a token of these claims, or without one."""
        headers = {"Authorization": f"Bearer {hmac_token(**claims)}"} if claims else {}
        async with connected(self.url, **headers) as client:
            yield client

    @asynccontextmanager
    async def user(self, identity: str) -> AsyncIterator[PusherClient]:
        """Connect and sign in."""
        async with self.client() as client:
            await client.signed_in({"id": identity})
            yield client

    async def connect_with(self, row: str, token: str) -> None:
        """Send a token in the handshake."""
        async with dialled(self.url, Authorization=f"Bearer {token}") as client:
            found = await result_of(client, client.event("pusher:connection_established"))
            if found == "yes" and await subscribing(client, KNOWN) != "yes":
                found = "connected without an identity"
            self.note(row, HANDSHAKE, found)

    async def sign_in(self, row: str, make: Callable[[PusherClient, str], str], before: str | None = None) -> None:
        """Sign in. make: of the client and the user's text, to `auth`. before: the identity that it has already."""
        async with self.client(**({} if before is None else {"identity": before})) as client:
            user = json.dumps({"id": self.identity()})
            await client.sign_in(user, auth=make(client, user))
            found = await result_of(client, client.event("pusher:signin_success"))
            if found == "yes" and await subscribing(client, KNOWN) != "yes":
                found = "signed in without an identity"
            self.note(row, LOGIN, found)

    async def subscribe(self, row: str, *makes: Make) -> None:
        """Subscribe to each channel as a new client, with each `auth`."""
        for make in makes:
            for channel, data in CHANNELS.items():
                async with self.client() as client:
                    self.note(row, SUBSCRIBE, await subscribing(client, channel, data, make(client, channel, data)))

    async def subscribed(self, client: PusherClient) -> None:
        """Subscribe a client to each channel, with a valid signature."""
        for channel, data in CHANNELS.items():
            auth = client.auth(channel, data)
            self.note("valid", SUBSCRIBE, await subscribing(client, channel, data, auth))

    async def end(self, row: str, column: str, clients: Iterable[PusherClient]) -> None:
        """Wait for the end of connections."""
        for client in clients:
            self.note(row, column, str((await client.ended())[0]))


def _text(client: PusherClient, what: str, data: str | None = None) -> str:
    """Return the text that a backend signs for a client."""
    return f"{client.socket_id}:{what}" + ("" if data is None else f":{data}")


async def try_signatures(trial: PusherTrial) -> None:
    """Fill in all rows but the last one."""
    async with AsyncExitStack() as stack:
        expiring = await stack.enter_async_context(trial.client(identity=trial.identity(), **soon()))
        staying = await stack.enter_async_context(trial.client(identity=trial.identity()))
        kept = await stack.enter_async_context(trial.user(trial.identity()))
        other = await stack.enter_async_context(trial.client())
        await trial.subscribed(kept)

        await trial.connect_with("valid", hmac_token(trial.identity()))
        await trial.sign_in("valid", lambda client, user: client.auth(f":user::{user}"))
        await trial.connect_with(EXPIRED, hmac_token(trial.identity(), **past()))
        await _try_revocations(trial)
        await trial.connect_with("signed with another key", hmac_token(trial.identity(), secret=OTHER_TOKEN_SECRET))
        await _try_other_signatures(trial, other)
        anonymous = await stack.enter_async_context(trial.client())
        trial.note("none", HANDSHAKE, await subscribing(anonymous, OPEN))
        await trial.subscribe("none", lambda *_: None, lambda *_: "")

        await trial.end(EXPIRED, CONNECTED, [expiring])
        for client in (staying, kept):
            trial.note("valid", CONNECTED, await result_of(client, client.fence()))
        for channel in CHANNELS:
            await trial.order("pubsub_backend", "publish", channel=channel, message={"event": "end", "data": "1"})
            trial.note("valid", SUBSCRIBED, await result_of(kept, kept.event("end", channel)))


async def _try_other_signatures(trial: PusherTrial, other: PusherClient) -> None:
    """Try what is no signature for this client, channel or app. other: another client."""
    row = "signed with another key"
    await trial.sign_in(row, lambda client, user: signed(_text(client, f":user::{user}"), secret=OTHER_APP_SECRET))
    await trial.subscribe(row, lambda client, *what: signed(_text(client, *what), secret=OTHER_APP_SECRET))

    row = "of the other kind"
    await trial.connect_with(row, hmac_token(trial.identity(), channel="private-c"))
    await trial.sign_in(row, lambda client, user: client.auth("private-c", user))
    await trial.sign_in(row, lambda _client, user: hmac_token(json.loads(user)["id"]))
    await trial.subscribe(
        row,
        lambda client, channel, data: client.auth(f":user::{data or channel}"),
        lambda _client, channel, _data: hmac_token(None, channel=channel),
    )

    row = "of another client"
    await trial.sign_in(row, lambda client, user: client.auth(f":user::{user}"), before=trial.identity())
    await trial.sign_in(row, lambda _client, user: other.auth(f":user::{user}"))
    await trial.subscribe(
        row,
        lambda _client, channel, data: other.auth(channel, data),
        lambda client, channel, _data: client.auth(channel, member("8")),
    )
    await trial.subscribe("for another channel", lambda client, channel, data: client.auth(f"{channel}d", data))
    await trial.subscribe(
        "for another service", lambda client, *what: signed(_text(client, *what), OTHER_APP_KEY, OTHER_APP_SECRET)
    )


async def _try_revocations(trial: PusherTrial) -> None:
    identity, claims = trial.identity(), {"identity": trial.identity(), "jti": "pusher-login"}
    async with trial.client(**claims) as by_token:
        await trial.order("auth_backend", "revokeToken", jti="pusher-login")
        await trial.end(BY_JTI, CONNECTED, [by_token])
    await trial.connect_with(BY_JTI, hmac_token(**claims))

    token = hmac_token(identity)
    async with trial.client(identity=identity) as by_token, trial.user(identity) as user:
        await trial.subscribed(user)
        await trial.order("auth_backend", "revoke", identity=identity)
        await trial.end(BY_IDENTITY, CONNECTED, [by_token])
        await trial.end(BY_IDENTITY, SUBSCRIBED, [user])
    await trial.connect_with(BY_IDENTITY, token)


async def try_required_of_pusher(trial: PusherTrial) -> None:
    """Fill in the row of a node that requires an identity."""
    async with trial.client() as client:
        trial.note(NONE_REQUIRED, SUBSCRIBE, await subscribing(client, OPEN))
