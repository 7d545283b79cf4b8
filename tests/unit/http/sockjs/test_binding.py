"""A SockJS session accepts only requests of the client that opened it, even if others know its id."""

import json
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from snorky.gateway.config.settings import Public
from snorky.gateway.http.sockjs.binding import CREDENTIALS_MAX, Binding, Who, who_asks
from tests.support.scenarios.site import on_both_loops
from tests.support.scenarios.sockjs_site import SockJSSite, sockjs_site

ANN, BOB = {"Cookie": "who=ann"}, {"Cookie": "who=bob"}
HERE, THERE = "https://here.example.org", "https://there.example.org"
FOREIGN = "https://evil.example.org"
PUBLIC = Public(allowed_origins=(HERE, THERE))
each_size = pytest.mark.parametrize("nodes", [1, 2])


async def by_cookie(request: web.Request) -> str | None:
    return request.cookies.get("who")


def echo(value: Any) -> str:
    return json.dumps([json.dumps({"service": "echo", "message": value})])


async def is_refused(site: SockJSSite, headers: dict[str, str]) -> None:
    """Try to send and to read as another client, on each node, with the id of an existing session."""
    other = site.client("chosen", headers)
    for at in range(len(site.hosts)):
        assert await other.post("xhr_send", echo("forged"), at=at) == (404, "")
        assert (await other.post("xhr", at=at))[0] == 404
    assert site.seen == [] and site.connections == 1


@each_size
@pytest.mark.parametrize("opener", [ANN, {}], ids=["authenticated", "anonymous"])
@on_both_loops
async def test_a_session_is_its_openers_alone(nodes: int, opener: dict[str, str]) -> None:
    async with sockjs_site(nodes, identify=by_cookie) as site:
        client = site.client("chosen", opener)
        assert await client.post("xhr", at=0) == (200, "o\n")
        for headers in (each for each in ({}, ANN, BOB) if each != opener):
            await is_refused(site, headers)
        for at in range(nodes):
            assert await client.post("xhr_send", echo(at), at=at) == (204, "")
        assert site.seen == list(range(nodes))
        refused = site.total("refusals_total", door="sockjs", reason="credential_differs")
        assert refused == 2 * 2 * nodes
        await client.post("xhr")


@each_size
@on_both_loops
async def test_a_client_with_a_new_cookie_is_identified_once(nodes: int) -> None:
    asked = []

    async def identify(request: web.Request) -> str | None:
        asked.append(request.cookies.get("who"))
        return asked[-1]

    async with sockjs_site(nodes, identify=identify) as site:
        assert await site.client("a", ANN).post("xhr", at=0) == (200, "o\n")
        later = site.client("a", {"Cookie": "who=ann; theme=dark"})
        for _ in range(3):
            assert await later.post("xhr_send", echo(1), at=nodes - 1) == (204, "")
        assert asked == ["ann", "ann"]
        await later.post("xhr")


@each_size
@on_both_loops
async def test_a_session_belongs_to_the_origin_that_opened_it(nodes: int) -> None:
    async with sockjs_site(nodes, identify=by_cookie, public=PUBLIC) as site:
        client = site.client("chosen", {**ANN, "Origin": HERE})
        assert await client.post("xhr", at=0) == (200, "o\n")
        await is_refused(site, {**ANN, "Origin": THERE})
        assert site.total("refusals_total", door="sockjs", reason="origin_differs") == 2 * nodes
        referred = site.client("chosen", {**ANN, "Referer": f"{HERE}/page"})
        assert await referred.post("xhr_send", echo(1)) == (204, "")
        await client.post("xhr")


NAVIGATIONS = [
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "none"},
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Referer": f"{HERE}/page"},
    {"Sec-Fetch-Dest": "object", "Referer": f"{HERE}/page"},
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe", "Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe", "Referer": f"{FOREIGN}/page"},
    {"Accept": "text/html,*/*;q=0.8"},
    {"Accept": "text/html,*/*;q=0.8", "Referer": f"{FOREIGN}/page"},
]


@pytest.mark.parametrize("way", ["htmlfile?c=x", "eventsource", "jsonp?c=x"])
@pytest.mark.parametrize("headers", NAVIGATIONS, ids=lambda headers: " ".join(headers.values())[:40])
@on_both_loops
async def test_no_link_leads_a_browser_into_a_session(headers: dict[str, str], way: str) -> None:
    async with sockjs_site(1, identify=by_cookie, public=PUBLIC) as site:
        assert (await site.client("chosen", {**ANN, **headers}).get(way))[0] == 403
        assert site.connections == 0


@pytest.mark.parametrize("way", ["xhr", "xhr_send", "jsonp_send"])
@on_both_loops
async def test_no_form_leads_a_browser_into_a_session(way: str) -> None:
    async with sockjs_site(1, identify=by_cookie, public=PUBLIC) as site:
        headers = {**ANN, "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Origin": HERE}
        assert (await site.client("chosen", headers).post(way, echo(1)))[0] == 403
        assert site.connections == 0
        assert site.total("refusals_total", door="handshake", reason="navigation") == 1


@on_both_loops
async def test_iframe_transports_of_allowed_pages_are_accepted() -> None:
    framed = {"Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe", "Referer": f"{HERE}/page"}
    async with sockjs_site(1, identify=by_cookie, public=PUBLIC) as site:
        client = site.client("chosen", {**ANN, **framed})
        async with client.stream("htmlfile?c=x", method="GET") as stream:
            assert stream.status == 200
            form = site.client("chosen", {**ANN, **framed, "Origin": HERE})
            assert await form.post("jsonp_send", echo(1)) == (200, "ok")
        own = {"Sec-Fetch-Site": "same-origin", "Sec-Fetch-Mode": "cors", "Sec-Fetch-Dest": "empty"}
        async with site.client("other", {**ANN, **own}).stream("eventsource", method="GET") as stream:
            assert stream.status == 200


@each_size
@on_both_loops
async def test_an_address_has_few_guesses_of_ids(nodes: int) -> None:
    async with sockjs_site(nodes, identify=by_cookie) as site:
        client = site.client("there", ANN)
        assert await client.post("xhr", at=0) == (200, "o\n")
        answers = [(await site.client(f"guess{number}").post("xhr_send", "", at=0))[0] for number in range(60)]
        assert answers[0] == 404 and answers[-1] == 429
        assert site.total("refusals_total", door="sockjs", reason="unknown_session") == 60
        assert site.total("handshakes_rejected_total", reason="session_attempts") == answers.count(429)
        assert await client.post("xhr_send", echo(1), at=0) == (204, ""), "the session's owner is not delayed"
        await client.post("xhr", at=0)


# -- which properties count ----------------------------------------------------------------------------------------


def who(*, takes_tokens: bool = False, has_hook: bool = False, ip: str = "1.2.3.4", **headers: str) -> Who:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = make_mocked_request("POST", "/sockjs/0/a/xhr", headers=named)
    return who_asks(request, "a", ip, takes_tokens=takes_tokens, has_hook=has_hook)


def test_a_token_is_the_credential_where_there_is_one() -> None:
    one = who(takes_tokens=True, Authorization="Bearer one")
    assert who(takes_tokens=True, Authorization="Bearer one", Cookie="x=1") == one
    assert who(takes_tokens=True, Authorization="Bearer two") != one != who(takes_tokens=True)
    assert who(takes_tokens=True, Cookie="x=1") == who(takes_tokens=True), "no cookie is read"


@pytest.mark.parametrize("header", ["Cookie", "Authorization", "X_Forwarded_User", "X_Client_Cert"])
def test_everything_that_a_hook_may_read_is_part_of_the_credential(header: str) -> None:
    assert who(has_hook=True, **{header: "a"}) == who(has_hook=True, **{header: "a"}, User_Agent="x", Traceparent="y")
    assert who(has_hook=True, **{header: "a"}) != who(has_hook=True, **{header: "b"})
    assert who(has_hook=True, **{header: "a"}) != who(has_hook=True)
    assert who(has_hook=True, ip="1.2.3.4") != who(has_hook=True, ip="1.2.3.5")


def test_credentials_of_one_session_are_bounded() -> None:
    binding = Binding(Who("0", "").known_as("ann"))
    for number in range(1, CREDENTIALS_MAX + 2):
        asks = Who(str(number), "")
        assert binding.judge(asks) == "unknown"
        assert binding.judge(asks.known_as("bob")) == "credential" == binding.judge(asks.known_as(None))
        assert binding.judge(asks.known_as("ann")) == "admitted" == binding.judge(asks)
    assert binding.judge(Who("0", "")) == "unknown"


@pytest.mark.parametrize("asks", [Who("c", "o"), Who("c", "o").known_as(None), Who("c", "").known_as("ann")])
def test_the_requests_identity_is_forwarded_between_nodes(asks: Who) -> None:
    assert Who.read(json.loads(json.dumps(asks.words()))) == asks
