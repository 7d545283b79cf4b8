"""Revoked identities and tokens: which connections are closed, and which clients may reconnect."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.sessions import Session
from snorky.gateway.config.auth import Auth
from snorky.gateway.contracts.hooks import Answer
from snorky.gateway.contracts.revocations import Kind, LocalRevocations, Revocation
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.identities import identity_name, identity_text
from tests.support.clients.raw_ws import RawClient
from tests.support.scenarios.logins import auth_call, authenticator, bearer, whoami
from tests.support.scenarios.site import on_both_loops, running_site, until
from tests.support.scenarios.tokens import SECRET, hmac_token

# -- revocation ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_revocation_closes_exactly_the_clients_it_names() -> None:
    async with running_site(auth=authenticator()) as site:
        auth = site.node.auth
        alice, phone, bob = [
            await site.client(bearer(token))
            for token in (hmac_token(jti="a-1"), hmac_token(jti="a-2"), hmac_token("bob"))
        ]
        await auth.revoke_token("a-2")
        assert await phone.closed() == 4503
        await auth.revoke("alice")
        assert await alice.closed() == 4503
        assert await whoami(bob, site) == "bob"


@on_both_loops
async def test_a_revoked_token_is_always_refused_again() -> None:
    async with running_site(auth=authenticator()) as site:
        token, other = hmac_token(jti="a-1"), hmac_token(jti="a-2")
        await site.node.auth.revoke_token("a-1")
        assert await (await site.client(bearer(token))).closed() == 4503
        client = await site.client(bearer(other))
        answer = await auth_call(client, "refresh", token)
        assert (answer["message"], answer["code"]) == ("Revoked", "revoked")
        assert await client.closed() == 4503


@on_both_loops
async def test_a_revoked_identity_may_reconnect_with_a_later_token() -> None:
    async with running_site(auth=authenticator()) as site:
        for dated in (hmac_token(), hmac_token(iat=None)):
            await site.node.auth.revoke("alice")
            assert await (await site.client(bearer(dated))).closed() == 4503
        later = hmac_token(iat=time.time())
        assert await whoami(await site.client(bearer(later)), site) == "alice"


@on_both_loops
async def test_an_issuers_clock_that_is_ahead_does_not_save_a_token() -> None:
    auth = Auth(hmac_secret=SECRET.encode(), leeway_s=5.0)
    async with running_site(auth=authenticator(auth=auth)) as site:
        token = hmac_token(iat=time.time() + 3)
        await site.node.auth.revoke("alice")
        assert await (await site.client(bearer(token))).closed() == 4503


@on_both_loops
async def test_disconnecting_is_no_revocation() -> None:
    async with running_site(auth=authenticator()) as site:
        for reconnect, code in ((False, 4500), (True, 4000)):
            client = await site.client(bearer(hmac_token()))
            await site.node.auth.disconnect("alice", reconnect=reconnect)
            assert await client.closed() == code
        assert await whoami(await site.client(bearer(hmac_token())), site) == "alice"


@on_both_loops
async def test_a_session_of_a_hook_is_revoked_too_and_the_hook_decides_about_the_next() -> None:
    async def identify(request: web.Request) -> str | None:
        return "carol"

    async with running_site(auth=authenticator(), identify=identify) as site:
        client = await site.client()
        await site.node.auth.revoke("carol")
        assert await client.closed() == 4503
        assert await whoami(await site.client(), site) == "carol"


@on_both_loops
async def test_the_backend_ends_a_connection_whose_identity_a_service_set() -> None:
    async with running_site(auth=authenticator()) as site:
        for command, close_code in (("revoke", 4503), ("disconnect", 4500)):
            client, other = await site.client(), await site.client()
            await whoami(client, site)
            ann, bob = list(site.node.connections)[-2:]
            ann.identity, bob.identity = "ann", "bob"
            await getattr(site.node.auth, command)("ann")
            assert await client.closed() == close_code
            await other.say({"service": "echo", "message": "still here"})
            assert (await other.message())["message"] == "still here"


@on_both_loops
async def test_the_identity_that_a_service_set_over_a_tokens_counts() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.client(bearer(hmac_token()))
        await whoami(client, site)
        site.connection.identity = "bob"
        await site.node.auth.disconnect("bob")
        assert await client.closed() == 4500


@on_both_loops
async def test_the_deadline_is_met_by_an_identity_that_a_service_set() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        client, stranger = await site.client(), await site.client()
        await until(lambda: len(list(site.node.connections)) == 2)
        next(iter(site.node.connections)).identity = "ann"
        assert await stranger.closed() == 4502  # its deadline is the later one
        await client.say({"service": "echo", "message": "here"})
        assert (await client.message())["message"] == "here"


@on_both_loops
async def test_an_integer_identity_is_revoked_as_an_integer_and_not_as_a_text() -> None:
    async with running_site(auth=authenticator()) as site:
        number, text = await site.client(), await site.client()
        await until(lambda: len(list(site.node.connections)) == 2)
        first, second = site.node.connections
        first.identity, second.identity = identity_text(7), "7"
        await site.node.auth.disconnect(identity_name(7))
        assert await number.closed() == 4500
        await text.say({"service": "echo", "message": "here"})
        assert (await text.message())["message"] == "here"


async def test_revocations_are_read_before_the_first_login_even_if_redis_starts_late() -> None:
    class Late(LocalRevocations):
        refusals = 0
        begun = asyncio.Event()

        async def begin(self, watcher: Any) -> None:
            if self.refusals == 0:
                self.refusals += 1
                raise BrokerUnavailable("revocations")
            await super().begin(watcher)
            self.begun.set()

    late = Late()
    auth = Authenticator(metrics=Metrics(), revocations=late)
    auth.start(lambda: ())
    async with asyncio.timeout(30.0):
        await late.begun.wait()
    await auth.stop()


async def test_the_list_knows_whether_a_node_has_clients_and_when_one_connects() -> None:
    class Idle(LocalRevocations):
        has_clients: Callable[[], bool]
        hurries = 0

        def read_while(self, has_clients: Callable[[], bool]) -> None:
            self.has_clients = has_clients

        def hurry(self) -> None:
            assert self.has_clients()
            self.hurries += 1

    idle = Idle()
    async with running_site(auth=authenticator(revocations=idle)) as site:
        assert not idle.has_clients()
        client = await site.client()
        await until(lambda: idle.hurries == 1)
        assert idle.has_clients()
        client.close()
        await until(lambda: not idle.has_clients())
        session = await site.node.auth.enter(hmac_token("bob"))
        assert idle.has_clients(), "before it has a connection"
        site.node.auth.leave(session)
        assert not idle.has_clients()


class Client:
    """A connection, as far as the authenticator uses it."""

    is_closed, identity, remote_ip = False, None, ""

    def close(self, code: int, reason: str) -> None:
        """Close."""


@pytest.mark.parametrize("behind_s", [3600.0, -3600.0])
@pytest.mark.parametrize("way", ["identify", "enter_as", "enter_answer"])
async def test_an_identity_without_a_token_is_compared_by_the_clock_of_the_list(way: str, behind_s: float) -> None:
    seconds = count(1_000_000.0, 0.001)
    revocations = LocalRevocations(lambda: next(seconds) - behind_s)
    auth = Authenticator(metrics=Metrics(), revocations=revocations, clock=lambda: next(seconds))
    auth.start(lambda: ())

    async def entered() -> Session:
        if way == "identify":
            connection: Any = Client()
            await auth.identify(connection, "ann")
            session = auth._sessions.of(connection)
        elif way == "enter_as":
            session = await auth.enter_as(answer_ann)
        else:
            session = await auth.enter_answer(Answer("ann", expires_at_s=2_000_000.0, asked_at_s=next(seconds)))
        assert session is not None
        return session

    async def answer_ann() -> str:
        return "ann"

    await auth.revoke("ann")
    next(islice(seconds, 10, None))  # until then a revocation may also apply to a login after it
    earlier = await entered()
    assert earlier.end is None, "it was revoked before"
    await auth.revoke("ann")
    assert earlier.end is not None
    await auth.stop()


class Hastened(LocalRevocations):
    """A revocation at the worst moment: the list has been read, and the connection does not exist yet."""

    async def find(self, identity: str, token_id: str | None) -> Sequence[Revocation]:  # type: ignore[override]
        found = await super().find(identity, token_id)
        await self.add(Kind.IDENTITY, identity)
        return found


@on_both_loops
async def test_a_revocation_in_the_middle_of_a_login_is_not_missed() -> None:
    async with running_site(auth=authenticator(revocations=Hastened())) as site:
        assert await (await site.client(bearer(hmac_token()))).closed() == 4503
        client = await site.client()
        await auth_call(client, "authenticate", hmac_token("bob"))
        assert await client.closed() == 4503


@pytest.mark.parametrize("bad", ["", "x" * 256, 7.5, True, None, ["alice"]])
def test_the_backend_gets_an_error_for_invalid_names(bad: Any) -> None:
    async def scenario() -> None:
        async with running_site(auth=authenticator()) as site:
            for command, name in (("revoke", "identity"), ("revokeToken", "jti"), ("disconnect", "identity")):
                client = await RawClient.open(*site.private_address)
                message = {"command": command, "params": {name: bad}, "callId": 1}
                body = json.dumps({"service": "auth_backend", "message": message}).encode()
                head = f"POST /backend HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
                await client.send(head.encode() + body)
                response = await client.response()
                client.close()
                assert json.loads(response.body)["message"]["message"] == "Invalid params"

    asyncio.run(scenario())
