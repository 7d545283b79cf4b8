"""Identities of clients, from handshake to close: tokens in the handshake or later, expiry, required identities."""

import asyncio
import json
import time
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.auth.jwks import KeyCache, KeysUnavailable
from snorky.gateway.config.auth import Auth
from snorky.gateway.contracts.revocations import LocalRevocations, Revocation
from snorky.gateway.errors import BrokerUnavailable
from tests.support.clients.raw_ws import TEXT, RawClient, frame
from tests.support.scenarios.logins import auth_call, authenticator, bearer, whoami
from tests.support.scenarios.site import on_both_loops, running_site, until
from tests.support.scenarios.tokens import SECRET, hmac_token

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
        timer = sessions._deadlines._timer
        for number in range(1000):
            sessions.enter(site.node.auth._sessions._by_connection[site.connection].who)
            sessions.expect(site.connection, 1000.0 + number)
        assert sessions._deadlines._timer is timer is not None
        client.close()
        await until(lambda: not site.node.counts["connections"])
        sessions._deadlines._due.clear()
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
