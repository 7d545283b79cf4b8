"""Identities of clients, from handshake to close: tokens in the handshake or later, expiry, required identities."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.jwks import KeyCache, KeysUnavailable
from snorky.gateway.auth.tokens import FixedKey, Key, Keys, Verifier
from snorky.gateway.config.auth import Auth
from snorky.gateway.contracts.revocations import Kind, LocalRevocations, Revocation
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.metrics import Metrics
from snorky.gateway.protocol.identities import identity_name, identity_text
from tests.support.clients.raw_ws import TEXT, RawClient, frame
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until
from tests.support.scenarios.tokens import SECRET, hmac_token

FIXED = FixedKey(Key("HS256", SECRET.encode()))
AUTH = Auth(hmac_secret=SECRET.encode(), leeway_s=0.0, timeout_s=0.3)


def authenticator(
    *, at_s: float = 0.0, revocations: Any = None, auth: Auth = AUTH, keys: Keys = FIXED
) -> Callable[[Metrics], Authenticator]:
    """Make an authenticator. at_s: how far its clock is ahead, so that a token of a minute is about to expire."""

    def make(metrics: Metrics) -> Authenticator:
        verifier = Verifier(keys, auth)
        clock = lambda: time.time() + at_s  # noqa: E731
        return Authenticator(verifier, metrics=metrics, auth=auth, revocations=revocations, clock=clock)

    return make


def bearer(token: str) -> dict[str, str | None]:
    return {"Authorization": f"Bearer {token}"}


async def whoami(client: RawClient, site: RunningSite) -> str | None:
    """Return the newest connection's identity, once the client is served."""
    await client.say({"service": "echo", "message": "here"})
    assert (await client.message())["message"] == "here"
    return site.connection.identity


async def auth_call(client: RawClient, command: str, token: Any) -> Any:
    return await client.call(command, service="auth", token=token)


# -- with the handshake ----------------------------------------------------------------------------------------


@on_both_loops
async def test_a_token_of_the_handshake_is_the_identity_from_the_first_moment() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        early = frame(TEXT, b'{"service":"echo","message":"early"}')
        client = await site.client(bearer(hmac_token()), early=early)
        assert (await client.message())["message"] == "early"
        assert site.echo.opened[0].identity == "alice"


@on_both_loops
async def test_a_browsers_token_is_a_subprotocol_and_the_answer_names_only_the_encoding() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.open()
        protocols = f"bearer.{hmac_token()}, snorky.json"
        response = await client.handshake({"Sec-WebSocket-Protocol": protocols})
        assert (response.status, response.headers["sec-websocket-protocol"]) == (101, "snorky.json")
        assert await whoami(client, site) == "alice"
        alone = await site.open()
        response = await alone.handshake({"Sec-WebSocket-Protocol": f"bearer.{hmac_token('bob')}"})
        assert (response.status, response.headers.get("sec-websocket-protocol")) == (101, None)
        assert await whoami(alone, site) == "bob"


@on_both_loops
async def test_a_bad_token_in_the_handshake_gives_a_close_code_and_reaches_no_service() -> None:
    """Browsers do not see the status of a handshake: without a close code a client would reconnect indefinitely."""
    async with running_site(auth=authenticator()) as site:
        for token in (hmac_token(exp=time.time() - 60), hmac_token(secret="x" * 32), "nonsense"):
            early = frame(TEXT, b'{"service":"echo","message":"early"}')
            client = await site.client(bearer(token), early=early)
            assert await client.closed() == 4501
        await until(lambda: site.admitted == (0, {}))
        assert not site.echo.opened and not site.echo.closed and not site.echo.seen
        assert site.sample("handshakes_rejected_total", reason="token") == 3
        assert site.sample("authentications_total", outcome="expired") == 1
        assert site.sample("authentications_total", outcome="signature") == 1


@on_both_loops
async def test_a_token_in_the_url_is_ignored() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        client = await site.open()
        head = f"GET /ws?token={hmac_token()}&access_token={hmac_token()} HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n"
        head += "Connection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
        await client.send(f"{head}\r\n".encode())
        assert (await client.response()).status == 101
        assert (await client.call("subscribe", channel="news"))["message"] == "Not authenticated"


@on_both_loops
async def test_two_tokens_are_one_too_many() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.open()
        both = {**bearer(hmac_token()), "Sec-WebSocket-Protocol": f"bearer.{hmac_token('eve')}"}
        assert (await client.handshake(both)).status == 400


@on_both_loops
async def test_another_authorization_scheme_is_ignored() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.client({"Authorization": "Basic YTpi"})
        assert await whoami(client, site) is None


@on_both_loops
async def test_the_origin_is_checked_before_the_token() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.open()
        assert (await client.handshake({**bearer(hmac_token()), "Origin": "https://evil.example"})).status == 403
        assert site.sample("authentications_total", outcome="ok") == 0


@on_both_loops
async def test_without_keys_a_token_is_not_ours_to_judge() -> None:
    async with running_site() as site:
        client = await site.client(bearer("a token of a proxy in front"))
        assert await whoami(client, site) is None
        answer = await auth_call(client, "authenticate", hmac_token())
        assert (answer["message"], answer["code"]) == ("Tokens are not configured", "not_configured")


class Unreachable(LocalRevocations):
    async def find(self, identity: str, token_id: str | None) -> list[Revocation]:
        raise BrokerUnavailable("revocations")


@on_both_loops
async def test_a_token_that_cannot_be_checked_now_is_refused_with_a_retry() -> None:
    async def fetch() -> bytes:
        raise KeysUnavailable("down")

    for auth in (authenticator(revocations=Unreachable()), authenticator(keys=KeyCache(fetch))):
        async with running_site(auth=auth) as site:
            client = await site.open()
            response = await client.handshake(bearer(hmac_token()))
            assert (response.status, response.headers["retry-after"]) == (503, "5")
            open_client = await site.client()
            answer = await auth_call(open_client, "authenticate", hmac_token())
            assert (answer["code"], answer["retryAfterMs"]) == ("unavailable", 1000)
            assert await whoami(open_client, site) is None


# -- by a hook -------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_session_cookie_can_identify_a_client_without_a_token() -> None:
    async def identify(request: web.Request) -> str | None:
        return {"of-carol": "carol"}.get(request.cookies.get("session", ""))

    async with running_site(auth=authenticator(), identify=identify) as site:
        assert await whoami(await site.client({"Cookie": "session=of-carol"}), site) == "carol"
        assert await whoami(await site.client({"Cookie": "session=made-up"}), site) is None
        both = {**bearer(hmac_token()), "Cookie": "session=of-carol"}
        assert await whoami(await site.client(both), site) == "alice"


@pytest.mark.parametrize("outcome", ["raise", "", 7.5, "a\nb"])
def test_a_hook_that_fails_refuses_the_client(outcome: Any) -> None:
    async def identify(request: web.Request) -> Any:
        if outcome == "raise":
            raise RuntimeError(f"no session {request.headers['Cookie']}")
        return outcome

    async def scenario() -> None:
        async with running_site(identify=identify, is_strict=False) as site:
            client = await site.open()
            response = await client.handshake({"Cookie": "session=secret"})
            if outcome == "raise":
                assert response.status == 503
            else:
                assert await client.closed() == 4501
            assert not site.echo.opened

    asyncio.run(scenario())


# -- later -----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_client_may_authenticate_after_the_handshake() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        client = await site.client()
        answer = await auth_call(client, "authenticate", hmac_token(exp=time.time() + 30.9))
        assert answer["data"] == {"identity": "alice", "expiresInS": 30}
        assert await whoami(client, site) == "alice"


@on_both_loops
async def test_messages_after_the_token_wait_for_the_identity() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        client = await site.client()
        call = {"command": "authenticate", "params": {"token": hmac_token()}, "callId": 1}
        both = [{"service": "auth", "message": call}, {"service": "echo", "message": "pipelined"}]
        await client.send(b"".join(frame(TEXT, json.dumps(each).encode()) for each in both))
        assert (await client.message())["message"]["type"] == "response"
        assert (await client.message())["message"] == "pipelined"


@on_both_loops
async def test_a_bad_token_is_answered_and_then_closes() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.client()
        answer = await auth_call(client, "authenticate", hmac_token(exp=time.time() - 60))
        assert (answer["type"], answer["message"], answer["code"]) == ("error", "Token expired", "invalid_token")
        assert await client.closed() == 4501


@on_both_loops
async def test_a_token_that_is_no_text_is_a_wrong_parameter() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.client()
        for token in (None, 7, ["a"], {"a": 1}):
            assert (await auth_call(client, "authenticate", token))["message"] == "Invalid params"
        assert await whoami(client, site) is None


@on_both_loops
async def test_a_connection_keeps_its_identity() -> None:
    """Rosters and names have the identity by then."""
    async with running_site(auth=authenticator()) as site:
        client = await site.client(bearer(hmac_token()))
        for command in ("authenticate", "refresh"):
            answer = await auth_call(client, command, hmac_token("bob"))
            assert answer["message"] == "Already authenticated"
        assert await whoami(client, site) == "alice"


@on_both_loops
async def test_refresh_needs_an_earlier_authentication() -> None:
    async with running_site(auth=authenticator()) as site:
        client = await site.client()
        assert (await auth_call(client, "refresh", hmac_token()))["message"] == "Not authenticated"


# -- deadlines -------------------------------------------------------------------------------------------------


@on_both_loops
async def test_a_client_that_does_not_authenticate_in_time_is_closed() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        silent, known, late = [await site.client() for _ in range(3)]
        await auth_call(known, "authenticate", hmac_token())
        await late.call("subscribe", channel="news")
        assert await silent.closed() == 4502
        assert await late.closed() == 4502
        assert await whoami(known, site) == "alice"


@on_both_loops
async def test_without_a_required_identity_no_client_is_closed() -> None:
    async with running_site(auth=authenticator()) as site:
        await site.client()
        assert not site.node.auth._sessions._awaited


@on_both_loops
async def test_a_connection_ends_with_its_token_unless_that_was_refreshed() -> None:
    async with running_site(auth=authenticator(at_s=59.0)) as site:  # tokens of a minute: a second is left
        ending, refreshed = [await site.client(bearer(hmac_token())) for _ in range(2)]
        answer = await auth_call(refreshed, "refresh", hmac_token(exp=time.time() + 600))
        assert answer["data"]["expiresInS"] > 500
        assert await ending.closed() == 4501
        assert await whoami(refreshed, site) == "alice"


@on_both_loops
async def test_a_thousand_deadlines_are_one_timer() -> None:
    async with running_site(auth=authenticator()) as site:
        sessions = site.node.auth._sessions
        client = await site.client(bearer(hmac_token()))
        timer = sessions._timer
        for number in range(1000):
            sessions.enter(site.node.auth._sessions._by_connection[site.connection].who)
            sessions.expect(site.connection, 1000.0 + number)
        assert sessions._timer is timer is not None
        client.close()
        await until(lambda: not site.node.counts["connections"])
        sessions._due.clear()
        sessions._by_name.clear()


# -- what needs an identity ------------------------------------------------------------------------------------


@on_both_loops
async def test_only_open_services_answer_anonymous_clients() -> None:
    auth = authenticator(auth=Auth(hmac_secret=SECRET.encode(), timeout_s=60))
    async with running_site(auth=auth, requires_identity=True) as site:
        client = await site.client()
        answer = await client.call("subscribe", "c-1", channel="news")
        expected = {"type": "error", "callId": "c-1", "message": "Not authenticated", "code": "not_authenticated"}
        assert answer == expected
        await client.say({"service": "echo", "message": "anybody"})
        assert (await client.message())["message"]["message"] == "Not authenticated"
        assert not site.echo.seen
        assert (await client.call("nothing", service="auth"))["message"] == "Unknown command"
        await auth_call(client, "authenticate", hmac_token())
        assert (await client.call("subscribe", channel="news"))["data"] is None


@on_both_loops
async def test_the_backend_needs_no_identity() -> None:
    async with running_site(auth=authenticator(), requires_identity=True) as site:
        assert not [each for each in site.public if each.name.endswith("_backend")]
        client = await RawClient.open(*site.private_address)
        body = b'{"service":"pubsub_backend","message":{"command":"publish","params":{"channel":"a","message":1}}}'
        await client.send(b"POST /backend HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        response = await client.response()
        client.close()
        assert (response.status, json.loads(response.body)["message"]["type"]) == (200, "response")


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
    async with asyncio.timeout(10):
        await late.begun.wait()
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
