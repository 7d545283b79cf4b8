"""The table of docs/permissions.md by the token: clients try each cell, and note what happened to them.

    trial = Trial(TransportStage(nodes, ["json"], None), "json")
    await try_tokens(trial)
    assert trial.found == expected()

`Trial` is for clients that send Snorky's envelopes. Trials of other protocols override what they do in another way, and
say by which codes their clients learn what the table says.
"""

import asyncio
import itertools
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from types import MappingProxyType
from typing import Any, Final

from tests.support.clients.transports import TransportStage
from tests.support.scenarios.permission_tables import ask, send, table
from tests.support.scenarios.tokens import hmac_token

__all__ = [
    "BY_IDENTITY",
    "BY_JTI",
    "CONNECTED",
    "EXPIRED",
    "HANDSHAKE",
    "LOGIN",
    "NONE_REQUIRED",
    "OTHER_TOKEN_SECRET",
    "PLACES",
    "SUBSCRIBE",
    "SUBSCRIBED",
    "WITHIN_S",
    "Cell",
    "Findings",
    "Trial",
    "closed",
    "expected",
    "past",
    "soon",
    "try_required",
    "try_tokens",
    "within",
]

Cell = tuple[str, str]  # row, column

HANDSHAKE, LOGIN, CONNECTED, SUBSCRIBE, SUBSCRIBED = COLUMNS = (
    "in the handshake",
    "in `authenticate`",
    "while connected with it",
    "in `subscribe` or `join`",
    "while subscribed with it",
)
EXPIRED: Final = "has expired"
BY_JTI: Final = "was revoked, by its `jti`"
BY_IDENTITY: Final = "was revoked, by its identity"
NONE_REQUIRED: Final = "none, with `required = true`"
TABLE: Final = table("the token", *COLUMNS)
WITHIN_S: Final = 30.0
PLACES: Final = {"pubsub": ("subscribe", "channel"), "chat": ("join", "channel"), "cursors": ("join", "document")}
OTHER_TOKEN_SECRET: Final = "another secret, of thirty-two bytes"
NOTHING: Final[Mapping[Cell, str]] = MappingProxyType({})


def expected(
    translate: Callable[[str, str, str], Collection[str]] = lambda _row, _column, text: (text,),
    *,
    without_meaning: Mapping[Cell, str] = NOTHING,
) -> dict[Cell, set[str]]:
    """Return what the table says, by its cells. An empty cell is left out.

    translate: of row, column and text, to what clients of another protocol receive. without_meaning: reasons why a cell
    does not apply to that protocol. Raises AssertionError: the table has no such cell.
    """
    cells = {
        (row, column): text for row, texts in TABLE.items() for column, text in zip(COLUMNS, texts, strict=True) if text
    }
    assert without_meaning.keys() <= cells.keys(), without_meaning.keys() - cells.keys()
    return {
        (row, column): set(translate(row, column, text))
        for (row, column), text in cells.items()
        if (row, column) not in without_meaning
    }


def soon() -> dict[str, Any]:
    """Return the claims of a token that is about to expire."""
    return {"exp": int(time.time()) + 5}  # JWT times are whole seconds: 4 s or more from now


def past() -> dict[str, Any]:
    """Return the claims of a token that has expired."""
    return {"iat": int(time.time()) - 60, "exp": int(time.time()) - 1}


class Findings:
    """What happened to the clients of one protocol. name: of the protocol; trials of one node have different ones."""

    def __init__(self, stage: TransportStage, name: str) -> None:
        self.stage, self.name = stage, name
        self.found: dict[Cell, set[str]] = {}
        self._identities = (f"{name}-{number}" for number in itertools.count())

    def note(self, row: str, column: str, found: str) -> None:
        """Note what happened."""
        self.found.setdefault((row, column), set()).add(found)

    def identity(self) -> str:
        """Return an identity that no other client has."""
        return next(self._identities)

    async def order(self, service: str, command: str, **params: Any) -> None:
        """Call a service as the backend does."""
        call = {"command": command, "params": params}
        answer = await self.stage.backend(0, {"service": service, "message": call})
        assert answer["message"]["type"] == "response", answer


class Trial(Findings):
    """Clients with Snorky's envelopes, each with an identity of its own."""

    def __init__(self, stage: TransportStage, name: str) -> None:
        super().__init__(stage, name)
        self.channel = f"c-{name}"
        self.handshakes = 0  # accepted ones with a token

    # -- connection tokens -----------------------------------------------------------------------------------------

    async def log_in(self, row: str, token: str, before: str | None = None) -> None:
        """Send a token in both ways. before: the identity that the client has already, so only by `authenticate`."""
        if before is None:
            await self._connect_with(row, token)
        await self._authenticate(row, token, before)

    async def _connect_with(self, row: str, token: str) -> None:
        actor = await self.stage.bearer(0, token)
        with suppress(AssertionError, ConnectionError):  # what a closed client cannot send
            await send(actor, "pubsub", "publish", channel=self.channel, message="with a token")
        await within(actor, lambda: actor.close_code is not None or actor.inbox)
        served = [each["message"] for each in actor.inbox]
        if actor.close_code is None:
            has_identity = served[0]["type"] == "response"
            self.note(row, HANDSHAKE, "yes" if has_identity else "connected without an identity")
            self.handshakes += has_identity
        else:
            self.note(row, HANDSHAKE, str(actor.close_code) if not served else "served before it was closed")
        await actor.close()

    async def _authenticate(self, row: str, token: str, before: str | None) -> None:
        actor = await self.stage.client(0, before)
        answer = await ask(actor, "auth", "authenticate", token=token)
        if answer["type"] == "response" or answer["code"] == "already_authenticated":
            self.note(row, LOGIN, "yes" if answer["type"] == "response" else f"`{answer['code']}`")
            await actor.close()
        else:
            self.note(row, LOGIN, await closed(actor))

    async def connected(self, **claims: Any) -> Any:
        """Connect with a token in the handshake. Returns the client, when it has been served."""
        actor = await self.stage.bearer(0, hmac_token(**{"identity": self.identity(), **claims}))
        assert (await ask(actor, "pubsub", "publish", channel="d", message=1))["type"] == "response"
        return actor

    # -- subscription tokens ---------------------------------------------------------------------------------------

    def grant(self, identity: str, service: str = "pubsub", *, to: str | None = None, **claims: Any) -> str:
        """Make a subscription token for the trial's channel of a service. to: the service that it names instead."""
        operation = PLACES[service][0]
        wanted = {"channel": self.channel, "service": to or service, "ops": [operation]}
        return hmac_token(identity, **{**wanted, **claims})

    async def subscribe(self, row: str, service: str, identity: str, token: str | None) -> Any:
        """Subscribe to, or join, the trial's channel as a new client; returns it."""
        actor = await self.stage.client(0, identity)
        command, name = PLACES[service]
        grant = {} if token is None else {"token": token}
        answer = await ask(actor, service, command, **{name: self.channel}, **grant)
        self.note(row, SUBSCRIBE, "yes" if answer["type"] == "response" else f"`{answer['code']}`")
        return actor

    async def refused(self, row: str, token: Callable[[str, str], str | None]) -> None:
        """Try a token for each service. token: made of the client's identity and the service."""
        for service in PLACES:
            identity = self.identity()
            actor = await self.subscribe(row, service, identity, token(identity, service))
            await actor.close()

    async def subscribed(self, **claims: Any) -> dict[str, Any]:
        """Subscribe with a valid token of these claims, for each service; returns the clients by the service."""
        actors = {}
        for service in PLACES:
            identity = claims.get("identity", self.identity())
            token = self.grant(**{**claims, "identity": identity, "service": service})
            actors[service] = await self.subscribe("valid", service, identity, token)
        return actors

    async def end(self, row: str, subscriptions: Mapping[str, Any]) -> None:
        """Wait for the end of subscriptions that are about to end."""
        for service, actor in subscriptions.items():
            self.note(row, SUBSCRIBED, await self._unsubscribed(service, actor))
            await actor.close()

    async def _unsubscribed(self, service: str, actor: Any) -> str:
        """Wait for the end of a subscription, or of the connection; returns the code."""

        def ends() -> list[str]:
            messages = [each["message"] for each in actor.inbox]
            return [f"`{each['code']}`" for each in messages if each.get("type") == "unsubscribed"]

        await within(actor, lambda: ends() or actor.close_code is not None)
        return ends()[0] if ends() else str(actor.close_code)


async def within(actor: Any, claim: Callable[[], object]) -> None:
    """Wait until a client's state makes the condition true. Raises TimeoutError."""
    async with asyncio.timeout(WITHIN_S):
        await actor.until(claim)


async def closed(actor: Any) -> str:
    """Wait for the end of a connection; returns its code."""
    await within(actor, lambda: actor.close_code is not None)
    return str(actor.close_code)


async def try_tokens(trial: Trial) -> None:
    """Fill in all rows but the last one."""
    expiring, staying = await trial.connected(**soon()), await trial.connected()
    subscriptions, kept = await trial.subscribed(**soon()), await trial.subscribed()

    await trial.log_in("valid", hmac_token(trial.identity()))
    await trial.log_in(EXPIRED, hmac_token(trial.identity(), **past()))
    await trial.refused(EXPIRED, lambda identity, service: trial.grant(identity, service, **past()))
    await _try_revoked_tokens(trial)
    await _try_revoked_identities(trial)
    await trial.log_in("signed with another key", hmac_token(trial.identity(), secret=OTHER_TOKEN_SECRET))
    await trial.refused(
        "signed with another key", lambda identity, service: trial.grant(identity, service, secret=OTHER_TOKEN_SECRET)
    )
    await trial.log_in("of the other kind", trial.grant(trial.identity()))
    await trial.refused("of the other kind", lambda identity, _service: hmac_token(identity))
    await trial.log_in("of another client", hmac_token(trial.identity()), before=trial.identity())
    await trial.refused("of another client", lambda _identity, service: trial.grant(trial.identity(), service))
    await trial.refused("for another channel", lambda identity, service: trial.grant(identity, service, channel="d"))
    others = {"pubsub": "chat", "chat": "cursors", "cursors": "chat"}
    await trial.refused(
        "for another service", lambda identity, service: trial.grant(identity, service, to=others[service])
    )
    await trial.refused(
        "without the operation", lambda identity, service: trial.grant(identity, service, ops=["history"])
    )
    await trial.refused("none", lambda _identity, _service: None)
    anonymous = await trial.stage.client(0, None)
    trial.note("none", HANDSHAKE, "yes" if await _is_served(anonymous) else "no")

    trial.note(EXPIRED, CONNECTED, await closed(expiring))
    await trial.end(EXPIRED, subscriptions)
    trial.note("valid", CONNECTED, "yes" if await _is_served(staying) else str(staying.close_code))
    await _try_kept(trial, kept)
    for actor in (anonymous, staying, *kept.values()):
        await actor.close()


async def _try_kept(trial: Trial, kept: Mapping[str, Any]) -> None:
    """Use subscriptions that have not ended. Raises AssertionError: a client has published that was refused."""
    listener = kept["pubsub"]
    await trial.order("pubsub_backend", "publish", channel=trial.channel, message="the end")
    await within(listener, lambda: listener.inbox[-1]["message"].get("message") == "the end")
    trial.note("valid", SUBSCRIBED, "yes")
    messages = [each["message"]["message"] for each in listener.inbox if each["message"].get("type") == "message"]
    assert messages == ["with a token"] * trial.handshakes + ["the end"], "a refused client has published"
    for service, command, params in (
        ("chat", "send", {"channel": trial.channel, "body": 1}),
        ("cursors", "leave", {"document": trial.channel}),
    ):
        answer = await ask(kept[service], service, command, **params)
        trial.note("valid", SUBSCRIBED, "yes" if answer["type"] == "response" else f"`{answer['code']}`")


async def _try_revoked_tokens(trial: Trial) -> None:
    identity, of_login, of_subscription = trial.identity(), f"{trial.name}-login", f"{trial.name}-subscription"
    token = hmac_token(identity, jti=of_login)
    actor = await trial.connected(identity=identity, jti=of_login)
    subscriptions = await trial.subscribed(jti=of_subscription)
    for token_id in (of_login, of_subscription):
        await trial.order("auth_backend", "revokeToken", jti=token_id)
    trial.note(BY_JTI, CONNECTED, await closed(actor))
    await trial.end(BY_JTI, subscriptions)
    await trial.log_in(BY_JTI, token)
    await trial.refused(BY_JTI, lambda identity, service: trial.grant(identity, service, jti=of_subscription))


async def _try_revoked_identities(trial: Trial) -> None:
    identity = trial.identity()
    token, grants = hmac_token(identity), {service: trial.grant(identity, service) for service in PLACES}
    actor, subscriptions = await trial.connected(identity=identity), await trial.subscribed(identity=identity)
    await trial.order("auth_backend", "revoke", identity=identity)
    trial.note(BY_IDENTITY, CONNECTED, await closed(actor))
    await trial.end(BY_IDENTITY, subscriptions)
    await trial.log_in(BY_IDENTITY, token)
    for service in PLACES:  # as a client with a later token, which is valid
        each = await trial.subscribe(BY_IDENTITY, service, identity, grants[service])
        await each.close()


async def _is_served(actor: Any) -> bool:
    answer = await ask(actor, "gateway", "info")
    return bool(answer["type"] == "response")


async def try_required(trial: Trial) -> None:
    """Fill in the row of a node that requires an identity."""
    for service, (command, name) in PLACES.items():
        actor = await trial.stage.client(0, None)
        answer = await ask(actor, service, command, **{name: trial.channel})
        trial.note(NONE_REQUIRED, SUBSCRIBE, f"`{answer['code']}`")
        trial.note(NONE_REQUIRED, HANDSHAKE, await closed(actor))
