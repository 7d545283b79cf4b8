"""[hooks.connect]: the backend is asked in the handshake, after the token, and may identify the client."""

import asyncio
import json
from ipaddress import ip_network
from typing import Any

import pytest
from aiohttp import web

from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.config.hooks import Hook, Hooks
from snorky.gateway.config.settings import Auth, Public
from snorky.gateway.contracts.revocations import LocalRevocations
from snorky.gateway.metrics import Metrics
from tests.support.clients.raw_ws import handshake_head
from tests.support.scenarios.site import RunningSite, on_both_loops, running_site, until
from tests.support.scenarios.sockjs_site import sockjs_site
from tests.support.scenarios.tokens import SECRET, hmac_token
from tests.support.servers.hook_backend import HookBackend

pytestmark = pytest.mark.usefixtures("each_door")


def bearer(identity: str = "ann", **claims: Any) -> dict[str, str | None]:
    return {"Authorization": f"Bearer {hmac_token(identity, **claims)}"}


def with_tokens(metrics: Metrics) -> Authenticator:
    auth = Auth(hmac_secret=SECRET.encode())
    return Authenticator(Verifier(FixedKey(Key("HS256", SECRET.encode())), auth), metrics=metrics, auth=auth)


def asking(backend: HookBackend, **others: Any) -> Hooks:
    return Hooks(connect=Hook(url=backend.url, **others))


async def refused(site: RunningSite, headers: dict[str, str | None] | None = None) -> tuple[int, str]:
    client = await site.open()
    response = await client.handshake(headers)
    return response.status, response.body.decode()


@on_both_loops
async def test_backend_is_asked_with_the_verified_token_and_the_address() -> None:
    async with HookBackend() as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        await site.client(bearer("ann", shops=["a", "b"]))
        await site.client()
        first, second = backend.questions
        assert (first["operation"], first["identity"], first["address"]) == ("connect", "ann", "127.0.0.1")
        assert first["claims"]["shops"] == ["a", "b"] and first["claims"]["sub"] == "ann"
        assert (second["identity"], second["claims"]) == (None, {})
        assert [each.identity for each in site.node.connections] == ["ann", None]


async def test_refused_client_gets_403_and_leaves_nothing() -> None:
    async with HookBackend({"allow": False}) as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        for headers in (None, bearer()):
            assert await refused(site, headers) == (403, "The application refuses this connection\n")
        assert site.sample("authentications_total", outcome="hook") == 2
        assert site.sample("handshakes_rejected_total", reason="hook") == 2
        assert site.echo.opened == []


async def test_failure_is_503_and_counted() -> None:
    async with HookBackend(b"nonsense") as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        for headers in (None, bearer()):
            assert await refused(site, headers) == (503, "The application cannot be asked for the moment\n")
        assert site.sample("authentications_total", outcome="hook_failed") == 2
        assert site.sample("handshakes_rejected_total", reason="hook_failed") == 2


async def test_failure_admits_clients_as_their_token_says_if_written_so() -> None:
    hooks = Hooks(connect=Hook(url="http://127.0.0.1:1/", on_failure="open"))
    async with running_site(hooks=hooks, auth=with_tokens) as site:
        await site.client(bearer())
        await site.client()
        assert [each.identity for each in site.node.connections] == ["ann", None]


async def test_invalid_token_is_not_asked_about() -> None:
    async with HookBackend() as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        client = await site.client({"Authorization": "Bearer nonsense"})
        assert await client.closed() == 4501
        assert backend.questions == []


async def test_answer_authenticates_an_anonymous_client() -> None:
    answer = {"allow": True, "identity": "ann", "claims": {"shops": [1]}, "expires_in_s": 0.3}

    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(metrics=metrics, auth=Auth(leeway_s=0.0))

    async with (
        HookBackend(answer) as backend,
        running_site(hooks=asking(backend), auth=auth, requires_identity=True) as site,
    ):
        client = await site.client()
        assert (site.connection.identity, site.connection.claims) == ("ann", {"shops": [1]})
        assert site.node.auth.is_configured
        assert await client.call("subscribe", channel="news") == {"type": "response", "data": None, "callId": 1}
        assert site.sample("authentications_total", outcome="ok") == 1
        assert await client.closed() == 4501  # it has expired


async def test_answer_does_not_change_the_identity_of_a_token() -> None:
    answer = {"allow": True, "identity": "root"}
    async with HookBackend(answer) as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        assert (await refused(site, bearer()))[0] == 503
        backend.answer = {"allow": True, "identity": "ann"}
        await site.client(bearer())
        assert site.connection.identity == "ann"


async def test_cached_answer_admits_no_identity_that_was_revoked_since() -> None:
    answer = {"allow": True, "identity": "ann"}
    revocations = LocalRevocations()

    def auth(metrics: Metrics) -> Authenticator:
        return Authenticator(metrics=metrics, revocations=revocations)

    async with HookBackend(answer) as backend, running_site(hooks=asking(backend, cache_s=60), auth=auth) as site:
        first = await site.client()
        await site.node.auth.revoke("ann")
        assert await first.closed() == 4503
        second = await site.client()
        assert await second.closed() == 4503
        assert len(backend.questions) == 1, "the answer was cached"


async def test_client_that_authenticates_later_is_asked_about_too() -> None:
    async with HookBackend() as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        client = await site.client()

        async def authenticate() -> dict[str, Any]:
            reply: dict[str, Any] = await client.call("authenticate", service="auth", token=hmac_token("ann"))
            return reply

        backend.answer = {"allow": False}
        assert (await authenticate())["code"] == "not_authorized"
        assert site.connection.identity is None
        backend.answer = b"nonsense"
        assert (await authenticate())["code"] == "unavailable"
        assert site.connection.identity is None
        backend.answer = {"allow": True}
        assert (await authenticate())["data"]["identity"] == "ann"
        assert [each["identity"] for each in backend.questions] == [None, "ann", "ann", "ann"]


async def test_client_that_leaves_while_the_backend_is_asked_leaves_nothing() -> None:
    async with HookBackend() as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        backend.may_answer.clear()
        client = await site.open()
        waiting = asyncio.ensure_future(client.handshake(bearer()))
        await until(lambda: backend.at_once == 1)
        waiting.cancel()
        client.close()
        await asyncio.gather(waiting, return_exceptions=True)
        backend.may_answer.set()
        await until(lambda: site.admitted == (0, {}), "nothing is left")
        assert site.echo.opened == []


@on_both_loops
async def test_refusals_of_clients_that_have_left_are_counted() -> None:
    async with HookBackend({"allow": False}) as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        backend.may_answer.clear()
        client = await site.open()
        await client.send(handshake_head(bearer()))
        await until(lambda: backend.at_once == 1)
        client.reset()
        await until(lambda: not site.handler.endpoint.gate._networks, "the node has noticed it")
        backend.may_answer.set()
        await until(lambda: site.sample("handshakes_rejected_total", reason="hook") == 1)
        assert site.sample("refusals_total", door="handshake", reason="hook") == 1


async def test_node_that_begins_to_drain_meanwhile_admits_nobody() -> None:
    async with HookBackend() as backend, running_site(hooks=asking(backend), auth=with_tokens) as site:
        backend.may_answer.clear()
        waiting = asyncio.ensure_future(refused(site, bearer()))
        await until(lambda: backend.at_once == 1)
        site.node.is_draining = True
        backend.may_answer.set()
        assert (await waiting)[0] == 503
        site.node.is_draining = False


# -- SockJS ----------------------------------------------------------------------------------------------------


async def test_sockjs_sessions_are_asked_about_once_when_they_open() -> None:
    async with HookBackend() as backend, sockjs_site(2, hooks=asking(backend)) as site:
        client = site.client()
        await client.open()
        assert len(backend.questions) == 1 and backend.questions[0]["address"] == "127.0.0.1"
        assert await client.post("xhr_send", json.dumps([json.dumps({"service": "echo", "message": 1})])) == (204, "")
        assert (await client.post("xhr"))[0] == 200
        assert len(backend.questions) == 1


@pytest.mark.parametrize(
    ("answer", "status", "text"),
    [
        ({"allow": False}, 403, "The application refuses this connection\n"),
        (b"nonsense", 503, "The application cannot be asked for the moment\n"),
    ],
)
async def test_refused_sockjs_session_is_not_opened(answer: Any, status: int, text: str) -> None:
    async with HookBackend(answer) as backend, sockjs_site(hooks=asking(backend)) as site:
        assert await site.client().post("xhr") == (status, text)
        assert site.connections == 0


async def test_sockjs_session_of_an_identity_from_the_backend_belongs_to_its_address() -> None:
    async def respond(request: web.Request) -> web.Response:
        address = (await request.json())["address"]
        return web.json_response({"allow": True, "identity": f"at {address}"})

    public = Public(trusted_proxies=(ip_network("127.0.0.0/8"),))
    async with HookBackend() as backend:
        backend.respond = respond
        async with sockjs_site(hooks=asking(backend), public=public) as site:
            mine, other = (site.client("chosen", {"X-Forwarded-For": f"192.0.2.{number}"}) for number in (1, 2))
            await mine.open()
            (connection,) = site.hosts[0].node.connections
            assert connection.identity == "at 192.0.2.1"
            body = json.dumps([json.dumps({"service": "echo", "message": 1})])
            assert await other.post("xhr_send", body) == (404, "")
            assert (await other.post("xhr"))[0] == 404
            assert await mine.post("xhr_send", body) == (204, "")
            assert site.seen == [1]
