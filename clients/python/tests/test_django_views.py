"""Views with lists to subscribe to: which requests get a token, and the calls to the gateway."""

import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client, override_settings
from django_project import Task, gateway_at, make_tables
from scripted_server import Peer, ScriptedServer, Step, answer, reply

from snorky.client import SnorkyError

TOKEN = "t" * 32
SUBSCRIBE = {"X-Snorky": "Subscribe"}


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    make_tables()
    with override_settings(SNORKY_BACKEND_URL=None):
        Task.objects.create(title="Buy milk")
        yield
        Task.objects.all().delete()


def ask(path: str, *script: Step, headers: dict[str, str] = SUBSCRIBE) -> tuple[Any, list[Any]]:
    """Get a page while the gateway follows a script; return the response and the gateway's requests."""
    with ScriptedServer(list(script)) as server, gateway_at(server.url):
        return Client().get(path, headers=headers), server.bodies


@pytest.mark.parametrize("value", ["Subscribe", "subscribe", " SUBSCRIBE"])
def test_list_comes_with_a_token_for_who_asks(value: str) -> None:
    response, bodies = ask("/tasks/", answer(reply(TOKEN)), headers={"X-Snorky": value})
    assert (response.status_code, response["X-Subscription-Token"]) == (200, TOKEN)
    assert [task["title"] for task in response.json()] == ["Buy milk"]
    params = {"items": [{"dealer": "AllTasks", "query": None}]}
    assert bodies == [
        {"service": "datasync_backend", "message": {"command": "authorizeSubscription", "params": params}}
    ]
    assert "X-Snorky" in response["Vary"]
    assert set(response["Cache-Control"].split(", ")) == {"private", "no-store"}


@pytest.mark.parametrize("headers", [{}, {"X-Snorky": "no"}])
def test_list_comes_without_a_token_for_who_does_not(headers: dict[str, str]) -> None:
    response, bodies = ask("/tasks/", headers=headers)
    assert response.status_code == 200
    assert "X-Subscription-Token" not in response
    assert "X-Snorky" in response["Vary"]
    assert bodies == []


def test_query_of_a_view_may_depend_on_the_request_and_is_encoded_as_django_does() -> None:
    response, bodies = ask("/done/?user=Ada", answer(reply(TOKEN)))
    assert response["X-Subscription-Token"] == TOKEN
    query = {"user": "Ada", "id": str(uuid.UUID(int=1))}
    assert bodies[0]["message"]["params"]["items"] == [{"dealer": "TasksByState", "query": query}]


def test_token_is_had_before_the_list_is_read() -> None:
    happened: list[str] = []

    def note(execute: Any, sql: str, *arguments: Any) -> Any:
        happened.append("query")
        return execute(sql, *arguments)

    def authorize(peer: Peer) -> None:
        happened.append("token")
        answer(reply(TOKEN))(peer)

    with connection.execute_wrapper(note):
        response, _ = ask("/tasks/", authorize)
    assert response["X-Subscription-Token"] == TOKEN
    assert happened[0] == "token" and "query" in happened


def test_who_may_not_see_the_list_gets_no_token() -> None:
    response, bodies = ask("/forbidden/")
    assert response.status_code == 403
    assert bodies == []


def test_error_of_the_view_brings_no_token() -> None:
    response, bodies = ask("/refusing/", answer(reply(TOKEN)))
    assert (response.status_code, len(bodies)) == (400, 1)
    assert "X-Subscription-Token" not in response


@pytest.mark.parametrize(
    ("step", "retry_after"),
    [
        (answer(b"", "502 Bad Gateway"), None),
        (answer(reply(5)), None),
        (answer(reply("a\r\nSet-Cookie: b")), None),
        (answer({"message": {"type": "error", "message": "x", "code": "unavailable", "retryAfterMs": 1500}}), "2"),
    ],
)
def test_gateway_that_does_not_answer_is_503(step: Step, retry_after: str | None) -> None:
    response, _ = ask("/tasks/", step)
    assert response.status_code == 503
    assert response.get("Retry-After") == retry_after
    assert "X-Subscription-Token" not in response


def test_nobody_can_subscribe_where_there_is_no_gateway() -> None:
    assert Client().get("/tasks/", headers=SUBSCRIBE).status_code == 503
    assert Client().get("/tasks/").status_code == 200


def test_dealer_that_there_is_none_of_is_the_programs_fault() -> None:
    with pytest.raises(SnorkyError, match="No such dealer"):
        ask("/tasks/", answer({"message": {"type": "error", "message": "No such dealer", "code": "no_such_dealer"}}))
    with pytest.raises(ImproperlyConfigured, match="set dealer"):
        ask("/undealt/")


def test_view_that_lists_creates_too() -> None:
    created = Client().post("/done/", {"title": "Done", "is_done": True})
    assert created.status_code == 201
    assert Client().get("/done/").json() == [{"id": created.json()["id"], "title": "Done", "is_done": True}]
