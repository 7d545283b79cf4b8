"""SockJS over HTTP and WebSocket: the responses of each transport, and the origins that may read them."""

import asyncio
import json
import re
from typing import Any

import aiohttp
import pytest

from snorky.gateway.config.settings import Limits, Public
from snorky.gateway.errors import InvalidMessage
from snorky.gateway.http.sockjs.frames import array_of, decode_frame, decode_messages, end_frame, quote
from snorky.gateway.http.sockjs.transports import EventSource, HtmlFile, Jsonp
from tests.support.scenarios.site import on_both_loops, until
from tests.support.scenarios.sockjs_site import SockJSSite, sockjs_site

ALLOWED = "https://app.example.org"
FOREIGN = "https://evil.example.org"
PUBLIC = Public(allowed_origins=(ALLOWED,))
NASTY = "</script><!--%41 é\u2028\u200d😀\\\"'\x00"


def envelope(value: Any) -> str:
    return json.dumps({"service": "echo", "message": value})


async def ask(site: SockJSSite, method: str, path: str, **options: Any) -> tuple[int, str, Any]:
    url = site.hosts[0].url + "/sockjs" + path
    async with site.http.request(method, url, allow_redirects=False, **options) as response:
        return response.status, (await response.read()).decode(), response.headers


def let_go(site: SockJSSite) -> None:
    for host in site.hosts:
        host.sockjs._sessions.abort_all()


# -- frames ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "plain", NASTY, "\u200c\u2060\ufff0\uffff", "\U0010ffff", '{"a":"\\u2028"}'])
def test_a_quoted_message_is_json_that_browsers_leave_alone(text: str) -> None:
    quoted = quote(text.encode())
    assert json.loads(quoted) == text
    assert not re.search(
        "[\x00-\x1f\u200c-\u200f\u2028-\u202f\u2060-\u206f\ufff0-\uffff\U00010000-\U0010ffff]", quoted.decode()
    )


def test_frames_are_those_of_the_protocol() -> None:
    assert array_of(quote(b"a") + b"," + quote(b"b") + b",") == b'a["a","b"]'
    assert end_frame(3000, 'Go "away"!\ud800') == b'c[3000,"Go \\"away\\"!?"]'


@pytest.mark.parametrize(("frame", "messages"), [(b"", []), (b"[]", []), (b'"a"', ["a"]), (b'["a", "b"]', ["a", "b"])])
def test_a_websocket_frame_is_a_string_or_an_array_of_them(frame: bytes, messages: list[str]) -> None:
    assert list(decode_frame(frame)) == messages


@pytest.mark.parametrize("body", [b"{}", b"1", b'["a"', b'"a","b"x', b"null", b'["\\udc00"]', b"[" * 50_000])
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(InvalidMessage):
        decode_frame(body)
    with pytest.raises(InvalidMessage):
        decode_messages(body)


def test_nothing_in_a_script_ends_it() -> None:
    frame = array_of(quote(NASTY.encode()) + b",")
    for written in (HtmlFile("c.x").wrap(frame), Jsonp("c.x").wrap(frame)):
        inside = written.removeprefix(b'<script nonce="').removesuffix(b"</script>\r\n")
        assert b"</" not in inside and b"<!" not in inside
        (argument,) = re.findall(rb"\((\".*\")\);", written)
        assert json.loads(argument).encode() == frame


def test_an_event_is_one_line_and_percents_survive_the_clients_decoding() -> None:
    event = EventSource().wrap(array_of(quote(NASTY.encode()) + b","))
    line, rest = event.removeprefix(b"data: ").split(b"\r\n", 1)
    assert rest == b"\r\n" and b"\n" not in line
    assert json.loads(line.replace(b"%25", b"%")[1:]) == [NASTY]


# -- paths -----------------------------------------------------------------------------------------------------


@on_both_loops
async def test_the_pages_are_those_of_the_protocol() -> None:
    async with sockjs_site() as site:
        for path in ("", "/"):
            status, text, headers = await ask(site, "GET", path)
            assert (status, text, headers["Content-Type"]) == (200, "Welcome to SockJS!\n", "text/plain; charset=UTF-8")
        status, text, headers = await ask(site, "GET", "/info")
        info = json.loads(text)
        assert status == 200 and "no-store" in headers["Cache-Control"]
        assert (info["websocket"], info["cookie_needed"], info["origins"]) == (True, False, ["*:*"])
        assert json.loads((await ask(site, "GET", "/info"))[1])["entropy"] != info["entropy"]
        for path in ("/a", "/a/a", "/a/a/", "//a/xhr", "/a//xhr", "/a.b/c/xhr", "/a/b.c/xhr", "/a/b/xhr/", "/a/b/none"):
            assert (await ask(site, "POST", path))[0] == 404, path
        assert (await ask(site, "GET", "/a/b/xhr"))[0] == 405
        assert (await ask(site, "POST", "/info"))[0] == 405


@on_both_loops
async def test_the_iframe_page_is_cached_for_a_year_and_framed_by_allowed_pages_only() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        for name in ("/iframe.html", "/iframe-a.html", "/iframe-0.1.2.html", "/iframe.html?t=1"):
            status, text, headers = await ask(site, "GET", name)
            assert status == 200 and "SockJS.bootstrap_iframe();" in text
            assert "sockjs-client@1.6.1" in text and 'integrity="sha384-' in text
            assert "max-age=31536000" in headers["Cache-Control"] and "Expires" in headers
            assert f"frame-ancestors 'self' {ALLOWED}" in headers["Content-Security-Policy"]
            status, text, again = await ask(site, "GET", name, headers={"If-None-Match": headers["ETag"]})
            assert (status, text, again["ETag"]) == (304, "", headers["ETag"])
        for name in ("/iframe.htm", "/iframe", "/IFRAME.HTML", "/iframe.xml", "/iframe-/.html"):
            assert (await ask(site, "GET", name))[0] == 404


@on_both_loops
async def test_preflights_are_answered_and_kept() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        for path, method in (
            ("/info", "GET"),
            ("/0/a/xhr", "POST"),
            ("/0/a/xhr_streaming", "POST"),
            ("/0/a/xhr_send", "POST"),
        ):
            status, _, headers = await ask(site, "OPTIONS", path, headers={"Origin": ALLOWED})
            assert status == 204
            assert headers["Access-Control-Allow-Methods"] == f"OPTIONS, {method}"
            assert "Content-Type" in headers["Access-Control-Allow-Headers"]
            assert headers["Access-Control-Max-Age"] == "31536000"
            assert headers["Access-Control-Allow-Origin"] == ALLOWED
            assert headers["Access-Control-Allow-Credentials"] == "true"


# -- origins ---------------------------------------------------------------------------------------------------


@on_both_loops
async def test_pages_of_other_origins_are_refused_everywhere() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        for method, path in (
            ("GET", "/info"),
            ("OPTIONS", "/info"),
            ("POST", "/0/a/xhr"),
            ("POST", "/0/a/xhr_streaming"),
            ("POST", "/0/a/xhr_send"),
            ("GET", "/0/a/eventsource"),
            ("GET", "/0/a/htmlfile?c=x"),
            ("POST", "/0/a/jsonp_send"),
        ):
            for headers in (
                {"Origin": FOREIGN},
                {"Origin": "null"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "cross-site", "Referer": f"{FOREIGN}/page"},
            ):
                status, _, answered = await ask(site, method, path, headers=headers)
                assert status == 403, (path, headers)
                assert "Access-Control-Allow-Origin" not in answered
        assert site.connections == 0
        assert site.total("handshakes_rejected_total", reason="origin") == 32


@on_both_loops
async def test_allowed_pages_may_read_answers_with_credentials() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        for path in ("/0/a/xhr", "/0/none/xhr_send"):
            _, _, headers = await ask(site, "POST", path, headers={"Origin": ALLOWED}, data='["x"]')
            assert headers["Access-Control-Allow-Origin"] == ALLOWED
            assert headers["Access-Control-Allow-Credentials"] == "true"
            assert "Origin" in headers["Vary"]
        _, _, headers = await ask(site, "POST", "/0/b/xhr")
        assert "Access-Control-Allow-Origin" not in headers
        let_go(site)


@on_both_loops
async def test_two_origins_are_none() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        headers = aiohttp.client.CIMultiDict([("Origin", ALLOWED), ("Origin", FOREIGN)])
        status, _, answered = await ask(site, "POST", "/0/a/xhr", headers=headers)
        assert status == 400 and "Access-Control-Allow-Origin" not in answered


@on_both_loops
async def test_a_script_is_for_pages_that_show_where_they_are() -> None:
    async with sockjs_site(public=PUBLIC) as site:
        for headers in ({}, {"Referer": f"{FOREIGN}/page"}, {"Referer": "about:blank"}):
            assert (await ask(site, "GET", "/0/a/jsonp?c=x", headers=headers))[0] == 403
        assert site.connections == 0
        status, text, headers = await ask(site, "GET", "/0/a/jsonp?c=x.y", headers={"Referer": f"{ALLOWED}/page"})
        assert (status, text) == (200, '/**/x.y("o");\r\n')
        assert headers["Content-Type"] == "application/javascript; charset=UTF-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        let_go(site)


@on_both_loops
async def test_a_callback_is_a_name() -> None:
    async with sockjs_site() as site:
        for name in ("htmlfile", "jsonp"):
            assert (await ask(site, "GET", f"/0/a/{name}"))[:2] == (500, '"callback" parameter required')
            for bad in ("a%20b", "alert(1)", "%3Cscript%3E", "a%0Ab", "a" * 129):
                assert (await ask(site, "GET", f"/0/a/{name}?c={bad}"))[:2] == (500, 'invalid "callback" parameter')


# -- transports ------------------------------------------------------------------------------------------------


@on_both_loops
async def test_eventsource_streams_events() -> None:
    async with sockjs_site() as site:
        client = site.client()
        async with client.stream("eventsource", method="GET") as stream:
            assert stream.headers["Content-Type"] == "text/event-stream; charset=UTF-8"
            assert stream.headers["X-Accel-Buffering"] == "no"
            assert await stream.content.readuntil(b"o\r\n\r\n") == b"\r\ndata: o\r\n\r\n"
            assert await client.post("xhr_send", json.dumps([envelope(NASTY)])) == (204, "")
            event = await stream.content.readuntil(b"\r\n\r\n")
            (message,) = json.loads(event.decode().removeprefix("data: a").replace("%25", "%"))
            assert json.loads(message)["message"] == NASTY


@on_both_loops
async def test_htmlfile_streams_scripts_of_a_page_that_runs_no_others() -> None:
    async with sockjs_site() as site:
        client = site.client()
        async with client.stream("htmlfile?c=parent_x.y", method="GET") as stream:
            assert stream.headers["Content-Type"] == "text/html; charset=UTF-8"
            policy = stream.headers["Content-Security-Policy"]
            nonce = re.search(r"script-src 'nonce-([^']+)'", policy)
            assert nonce and "frame-ancestors 'self'" in policy
            head = (await stream.content.readuntil(b"</script>\r\n")).decode()
            page, opened = head.split("\r\n\r\n")
            assert len(page) >= 1024 and "var c = parent.parent_x.y;" in page
            assert opened == f'<script nonce="{nonce[1]}">\np("o");\n</script>\r\n'
            assert await client.post("xhr_send", json.dumps([envelope("x")])) == (204, "")
            script = (await stream.content.readuntil(b"</script>\r\n")).decode()
            assert (
                json.loads(re.findall(r"p\((.*)\);", script)[0])
                == f"a[{json.dumps(json.dumps({'service': 'echo', 'message': 'x'}, separators=(',', ':')))}]"
            )


@on_both_loops
async def test_jsonp_brings_a_frame_a_script_and_takes_forms() -> None:
    async with sockjs_site(3, public=PUBLIC) as site:
        client = site.client(headers={"Referer": f"{ALLOWED}/"})
        assert await client.get("jsonp?c=cb") == (200, '/**/cb("o");\r\n')
        form = aiohttp.FormData({"d": json.dumps([envelope("é%")])})
        async with site.http.post(client.url("jsonp_send"), data=form) as response:
            assert (response.status, await response.text()) == (200, "ok")
        assert await client.post("jsonp_send", json.dumps([envelope(2)])) == (200, "ok")
        _, text = await client.get("jsonp?c=cb")
        frame = json.loads(text.removeprefix("/**/cb(").removesuffix(");\r\n"))
        assert [json.loads(message)["message"] for message in json.loads(frame[1:])] == ["é%", 2]
        for body in ("", "x", "d=", "d=x", "d"):
            form_type = {"Content-Type": "application/x-www-form-urlencoded"}
            async with site.http.post(client.url("jsonp_send"), data=body, headers=form_type) as response:
                assert response.status == 500


@on_both_loops
async def test_websockets_use_sockjs_frames_under_a_session_path_and_plain_ones_otherwise() -> None:
    async with sockjs_site() as site:
        base = site.hosts[0].url + "/sockjs"
        async with site.http.ws_connect(base + "/0/a/websocket") as socket:
            assert (await socket.receive()).data == "o"
            await socket.send_str("")
            await socket.send_str(json.dumps(envelope(1)))
            await socket.send_str(json.dumps([envelope(NASTY), envelope(3)]))
            values = []
            while len(values) < 3:
                frame = (await socket.receive()).data
                assert frame[0] == "a"
                values += [json.loads(message)["message"] for message in json.loads(frame[1:])]
            assert values == [1, NASTY, 3]
            assert site.total("connections", transport="sockjs", encoding="json") == 1
            assert site.total("messages_received_total", transport="sockjs") == 3
            (connection,) = site.hosts[0].node.connections
            connection.close(4503, "Revoked")
            assert (await socket.receive()).data == 'c[4503,"Revoked"]'
            assert (await socket.receive()).type is aiohttp.WSMsgType.CLOSE
            assert socket.close_code == 4503
        async with site.http.ws_connect(base + "/websocket") as socket:
            await socket.send_str(envelope("plain"))
            assert json.loads((await socket.receive()).data) == {"service": "echo", "message": "plain"}
        await until(lambda: site.connections == 0)


@on_both_loops
@pytest.mark.parametrize(
    ("frame", "code"), [('["a', 1007), ("{}", 1007), (b"binary", 1003), ('"' + "x" * 200 + '"', 1009)]
)
async def test_a_websocket_that_speaks_otherwise_is_closed(frame: str | bytes, code: int) -> None:
    async with sockjs_site(limits=Limits(message_max_bytes=150, outbox_max_bytes=1000)) as site:
        async with site.http.ws_connect(site.hosts[0].url + "/sockjs/0/a/websocket") as socket:
            assert (await socket.receive()).data == "o"
            await (socket.send_str(frame) if isinstance(frame, str) else socket.send_bytes(frame))
            assert (await socket.receive()).data.startswith(f"c[{code},")
            await socket.receive()
            assert socket.close_code == code


@on_both_loops
async def test_a_message_of_the_full_size_fits_with_its_quotes() -> None:
    async with sockjs_site() as site:
        text = json.dumps({"service": "echo", "message": '"' * 32_000})
        assert 60_000 < len(text) <= 65_536
        async with site.http.ws_connect(site.hosts[0].url + "/sockjs/0/a/websocket", max_msg_size=0) as socket:
            assert (await socket.receive()).data == "o"
            await socket.send_str(json.dumps([text]))
            (message,) = json.loads((await socket.receive()).data[1:])
            assert json.loads(message)["message"] == '"' * 32_000


@on_both_loops
async def test_websockets_receive_sockjs_heartbeats() -> None:
    public = Public(ping_interval_s=20.0)
    async with sockjs_site(public=public) as site:
        async with site.http.ws_connect(site.hosts[0].url + "/sockjs/0/a/websocket", autoping=True) as socket:
            assert (await socket.receive()).data == "o"
            (connection,) = site.hosts[0].node.connections
            connection._wire.beat()  # type: ignore[attr-defined]  # what the wheel does after 20 s
            async with asyncio.timeout(30.0):
                assert (await socket.receive()).data == "h"
