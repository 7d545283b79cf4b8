"""The table of docs/permissions.md by the token: each kind, when a client sends it, and when it becomes so later."""

import asyncio
import itertools
import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.support.clients.transports import TransportStage
from tests.support.scenarios.node_stage import node_stage
from tests.support.scenarios.permission_tables import TRANSPORTS, ask, send, table
from tests.support.scenarios.tokens import hmac_token

HANDSHAKE, LOGIN, CONNECTED, SUBSCRIBE, SUBSCRIBED = COLUMNS = (
    "in the handshake",
    "in `authenticate`",
    "while connected with it",
    "in `subscribe` or `join`",
    "while subscribed with it",
)
TABLE = table("the token", *COLUMNS)
WITHIN_S = 10.0
PLACES = {"pubsub": ("subscribe", "channel"), "chat": ("join", "channel"), "cursors": ("join", "document")}
ONLY_TOKENS = json.dumps([{"match": "*", "allow_subscribe": "token", "allow_publish": "authenticated"}])
ENV = {
    "SNORKY_AUTH__LEEWAY_S": "0",
    "SNORKY_SERVICES__PUBSUB__CHANNELS": ONLY_TOKENS,
    "SNORKY_SERVICES__CHAT__ROOMS": '[{"match": "*", "allow_join": "token"}]',
    "SNORKY_SERVICES__CURSORS__DOCUMENTS": '[{"match": "*", "allow_join": "token"}]',
}
REQUIRED = {"SNORKY_AUTH__REQUIRED": "true", "SNORKY_AUTH__TIMEOUT_S": "1"}
OTHER = "another secret, of thirty-two bytes"
STILL_THERE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("chat", "send", {"channel": "c", "body": 1}),
    ("cursors", "leave", {"document": "c"}),
)


def grant(identity: str, service: str = "pubsub", *, to: str | None = None, **claims: Any) -> str:
    """Make a subscription token for the channel c of a service. to: the service that it names instead."""
    operation = PLACES[service][0]
    return hmac_token(identity, **{"channel": "c", "service": to or service, "ops": [operation], **claims})


def soon() -> dict[str, int]:
    return {"exp": int(time.time()) + 5}  # JWT times are whole seconds: 4 s or more from now


def past() -> dict[str, int]:
    return {"iat": int(time.time()) - 60, "exp": int(time.time()) - 1}


class Trial:
    """Clients of one transport on a node, each with an identity of its own, and what happened to them."""

    def __init__(self, stage: TransportStage) -> None:
        self.stage = stage
        self.found: dict[tuple[str, str], set[str]] = {}  # row, column
        self.handshakes = 0  # accepted ones with a token
        self._identities = (f"user-{number}" for number in itertools.count())

    def note(self, row: str, column: str, found: str) -> None:
        self.found.setdefault((row, column), set()).add(found)

    def identity(self) -> str:
        return next(self._identities)

    async def order(self, command: str, **params: Any) -> None:
        """Let the backend revoke."""
        call = {"command": command, "params": params}
        answer = await self.stage.backend(0, {"service": "auth_backend", "message": call})
        assert answer["message"]["type"] == "response", answer

    # -- connection tokens -----------------------------------------------------------------------------------------

    async def log_in(self, row: str, token: str, before: str | None = None) -> None:
        """Send a token in both ways. before: the identity that the client has already, so only by `authenticate`."""
        if before is None:
            actor = await self.stage.bearer(0, token)
            with suppress(AssertionError, ConnectionError):  # what a closed client cannot send
                await send(actor, "pubsub", "publish", channel="c", message="with a token")
            await within(actor, lambda: actor.close_code is not None or actor.inbox)
            served = [each["message"] for each in actor.inbox]
            if actor.close_code is None:
                has_identity = served[0]["type"] == "response"
                self.note(row, HANDSHAKE, "yes" if has_identity else "connected without an identity")
                self.handshakes += has_identity
            else:
                self.note(row, HANDSHAKE, str(actor.close_code) if not served else "served before it was closed")
            await actor.close()
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

    async def subscribe(self, row: str, service: str, identity: str, token: str | None) -> Any:
        """Subscribe to, or join, the channel c as a new client; returns it."""
        actor = await self.stage.client(0, identity)
        command, name = PLACES[service]
        answer = await ask(actor, service, command, **{name: "c"}, **({} if token is None else {"token": token}))
        self.note(row, SUBSCRIBE, "yes" if answer["type"] == "response" else f"`{answer['code']}`")
        return actor

    async def refused(self, row: str, token: Callable[[str, str], str | None]) -> None:
        """Try a token for each service. token: made of the client's identity and the service."""
        for service in PLACES:
            identity = self.identity()
            actor = await self.subscribe(row, service, identity, token(identity, service))
            await actor.close()

    async def subscribed(self, **claims: Any) -> list[Any]:
        """Subscribe with a valid token of these claims, for each service."""
        actors = []
        for service in PLACES:
            identity = claims.get("identity", self.identity())
            token = grant(**{**claims, "identity": identity, "service": service})
            actors.append(await self.subscribe("valid", service, identity, token))
        return actors


async def within(actor: Any, claim: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        await actor.until(claim)


async def closed(actor: Any) -> str:
    """Wait for the end of a connection; returns its code."""
    await within(actor, lambda: actor.close_code is not None)
    return str(actor.close_code)


async def unsubscribed(actor: Any) -> str:
    """Wait for the end of a subscription, or of the connection; returns the code."""

    def ends() -> list[str]:
        return [f"`{each['message']['code']}`" for each in actor.inbox if each["message"].get("type") == "unsubscribed"]

    await within(actor, lambda: ends() or actor.close_code is not None)
    return ends()[0] if ends() else str(actor.close_code)


async def try_tokens(trial: Trial) -> None:
    """Fill in all rows but the last one."""
    expiring, staying = await trial.connected(**soon()), await trial.connected()
    subscriptions, kept = await trial.subscribed(**soon()), await trial.subscribed()

    await trial.log_in("valid", hmac_token(trial.identity()))
    await trial.log_in("has expired", hmac_token(trial.identity(), **past()))
    await trial.refused("has expired", lambda identity, service: grant(identity, service, **past()))
    await try_revoked_tokens(trial)
    await try_revoked_identities(trial)
    await trial.log_in("signed with another key", hmac_token(trial.identity(), secret=OTHER))
    await trial.refused("signed with another key", lambda identity, service: grant(identity, service, secret=OTHER))
    await trial.log_in("of the other kind", grant(trial.identity()))
    await trial.refused("of the other kind", lambda identity, _service: hmac_token(identity))
    await trial.log_in("of another client", hmac_token(trial.identity()), before=trial.identity())
    await trial.refused("of another client", lambda _identity, service: grant(trial.identity(), service))
    await trial.refused("for another channel", lambda identity, service: grant(identity, service, channel="d"))
    others = {"pubsub": "chat", "chat": "cursors", "cursors": "chat"}
    await trial.refused("for another service", lambda identity, service: grant(identity, service, to=others[service]))
    await trial.refused("without the operation", lambda identity, service: grant(identity, service, ops=["history"]))
    await trial.refused("none", lambda _identity, _service: None)
    anonymous = await trial.stage.client(0, None)
    trial.note("none", HANDSHAKE, "yes" if await is_served(anonymous) else "no")

    trial.note("has expired", CONNECTED, await closed(expiring))
    for actor in subscriptions:
        trial.note("has expired", SUBSCRIBED, await unsubscribed(actor))
    trial.note("valid", CONNECTED, "yes" if await is_served(staying) else str(staying.close_code))
    call = {"command": "publish", "params": {"channel": "c", "message": "the end"}}
    await trial.stage.backend(0, {"service": "pubsub_backend", "message": call})
    listener, *members = kept
    await within(listener, lambda: listener.inbox[-1]["message"].get("message") == "the end")
    trial.note("valid", SUBSCRIBED, "yes")
    messages = [each["message"]["message"] for each in listener.inbox if each["message"].get("type") == "message"]
    assert messages == ["with a token"] * trial.handshakes + ["the end"], "a refused client has published"
    for actor, (service, command, params) in zip(members, STILL_THERE, strict=True):
        answer = await ask(actor, service, command, **params)
        trial.note("valid", SUBSCRIBED, "yes" if answer["type"] == "response" else f"`{answer['code']}`")
    for actor in (anonymous, staying, *subscriptions, *kept):
        await actor.close()


async def try_revoked_tokens(trial: Trial) -> None:
    row, identity = "was revoked, by its `jti`", trial.identity()
    token = hmac_token(identity, jti="login")
    actor = await trial.connected(identity=identity, jti="login")
    subscriptions = await trial.subscribed(jti="subscription")
    for token_id in ("login", "subscription"):
        await trial.order("revokeToken", jti=token_id)
    trial.note(row, CONNECTED, await closed(actor))
    for each in subscriptions:
        trial.note(row, SUBSCRIBED, await unsubscribed(each))
        await each.close()
    await trial.log_in(row, token)
    await trial.refused(row, lambda identity, service: grant(identity, service, jti="subscription"))


async def try_revoked_identities(trial: Trial) -> None:
    row, identity = "was revoked, by its identity", trial.identity()
    token, grants = hmac_token(identity), {service: grant(identity, service) for service in PLACES}
    actor, subscriptions = await trial.connected(identity=identity), await trial.subscribed(identity=identity)
    await trial.order("revoke", identity=identity)
    trial.note(row, CONNECTED, await closed(actor))
    for each in subscriptions:
        trial.note(row, SUBSCRIBED, await unsubscribed(each))
    await trial.log_in(row, token)
    for service in PLACES:  # as a client with a later token, which is valid
        each = await trial.subscribe(row, service, identity, grants[service])
        await each.close()


async def is_served(actor: Any) -> bool:
    answer = await ask(actor, "gateway", "info")
    return bool(answer["type"] == "response")


async def try_required(trial: Trial) -> None:
    """Fill in the row of a node that requires an identity."""
    row = "none, with `required = true`"
    for service, (command, name) in PLACES.items():
        actor = await trial.stage.client(0, None)
        answer = await ask(actor, service, command, **{name: "c"})
        trial.note(row, SUBSCRIBE, f"`{answer['code']}`")
        trial.note(row, HANDSHAKE, await closed(actor))


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_every_cell_of_the_table_is_true(transport: str, tmp_path: Path) -> None:
    found: dict[tuple[str, str], set[str]] = {}
    for name, env, attempt in (("any", ENV, try_tokens), ("required", {**ENV, **REQUIRED}, try_required)):
        (tmp_path / name).mkdir()
        async with node_stage(tmp_path / name, 1, env=env) as nodes:
            trial = Trial(TransportStage(nodes, [transport], None))
            await attempt(trial)
            found |= trial.found
    expected = {
        (row, column): {cell}
        for row, cells in TABLE.items()
        for column, cell in zip(COLUMNS, cells, strict=True)
        if cell
    }
    assert found == expected
