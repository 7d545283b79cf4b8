"""The deltas of @subscribable models, and when they are published."""

import unittest
import uuid
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.core import serializers
from django.core.exceptions import ImproperlyConfigured
from django.db import models, transaction
from django.db.models import F
from django.test import TestCase, override_settings
from django_project import File, Note, Task, gateway_at, make_tables
from scripted_server import Peer, ScriptedServer, answer, http, reply

from snorky.client.django import deltas_lost, publish_deltas, subscribable


@pytest.fixture(autouse=True)
def tables() -> Iterator[None]:
    make_tables()
    with override_settings(SNORKY_BACKEND_URL=None):
        yield
        Task.objects.all().delete()


def serve(peer: Peer) -> None:
    """Accept all publications."""
    while request := peer.read_request():
        peer.server.requests.append(request)
        peer.sock.sendall(http(reply(None)))


class Gateway:
    """Return the published deltas, call by call."""

    def __init__(self, server: ScriptedServer) -> None:
        self.server = server

    @property
    def calls(self) -> list[list[Any]]:
        for body in self.server.bodies:
            assert (body["service"], body["message"]["command"]) == ("datasync_backend", "publishDeltas")
        return [body["message"]["params"]["deltas"] for body in self.server.bodies]

    @property
    def deltas(self) -> list[Any]:
        return [delta for call in self.calls for delta in call]


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    with ScriptedServer([serve], [serve]) as server, gateway_at(server.url):
        yield Gateway(server)
        Task.objects.all().delete()


def task(**values: Any) -> dict[str, Any]:
    return {"title": "Buy milk", "is_done": False, "due": None, **values}


def test_life_of_a_row_is_an_insert_an_update_and_a_delete(gateway: Gateway) -> None:
    row = Task.objects.create(title="Buy milk", due="2026-01-31")
    key = row.id
    row.is_done = True
    row.save()
    row.delete()
    first = task(id=key, due="2026-01-31")
    done = {**first, "is_done": True}
    assert gateway.deltas == [
        {"type": "insert", "model": "Task", "data": first},
        {"type": "update", "model": "Task", "newData": done, "oldData": first},
        {"type": "delete", "model": "Task", "data": done},
    ]
    assert b"X-Backend-Key: swordfish" in gateway.server.requests[0]


def test_fields_that_are_not_named_stay_in_the_house(gateway: Gateway) -> None:
    Task.objects.create(title="Buy milk", secret="password")
    assert b"password" not in b"".join(gateway.server.requests)


def test_nothing_goes_out_before_the_commit_and_then_all_at_once_in_order(gateway: Gateway) -> None:
    with transaction.atomic():
        for number in range(5):
            Task.objects.create(title=str(number))
        assert gateway.calls == []
    assert [[delta["data"]["title"] for delta in call] for call in gateway.calls] == [["0", "1", "2", "3", "4"]]


def test_what_is_rolled_back_is_not_published(gateway: Gateway) -> None:
    with pytest.raises(RuntimeError), transaction.atomic():
        Task.objects.create(title="never")
        raise RuntimeError
    assert gateway.calls == []


def test_what_is_rolled_back_to_a_savepoint_is_not_published_and_the_rest_is(gateway: Gateway) -> None:
    with transaction.atomic():
        Task.objects.create(title="1")
        with transaction.atomic():
            Task.objects.create(title="2")
        with pytest.raises(RuntimeError), transaction.atomic():
            Task.objects.create(title="3")
            with transaction.atomic():
                Task.objects.create(title="4")
            Task.objects.create(title="5")
            raise RuntimeError
        with transaction.atomic():
            Task.objects.create(title="6")
        Task.objects.create(title="7")
    assert [delta["data"]["title"] for delta in gateway.deltas] == ["1", "2", "6", "7"]


def test_changes_of_one_transaction_follow_upon_each_other(gateway: Gateway) -> None:
    row = Task.objects.create(title="a")
    with transaction.atomic():
        for title in ("b", "c"):
            row.title = title
            row.save()
    changes = [(delta["oldData"]["title"], delta["newData"]["title"]) for delta in gateway.deltas[1:]]
    assert changes == [("a", "b"), ("b", "c")]


def test_deltas_tell_what_the_database_has_not_what_the_instance_says(gateway: Gateway) -> None:
    row = Task.objects.create(title="a")
    row.title, row.is_done = "not saved", True
    row.save(update_fields=["is_done"])
    assert gateway.deltas[-1]["newData"] == task(id=row.id, title="a", is_done=True)
    row.title = F("secret")
    row.save()
    assert gateway.deltas[-1]["newData"]["title"] == "of the house"


def test_saving_without_a_change_publishes_nothing(gateway: Gateway) -> None:
    Task.objects.create(title="a").save()
    assert [delta["type"] for delta in gateway.deltas] == ["insert"]


def test_key_that_was_chosen_by_the_program_makes_an_insert_then_an_update(gateway: Gateway) -> None:
    Task(id=77, title="a").save()
    Task(id=77, title="b").save()
    assert [(delta["type"], delta["model"]) for delta in gateway.deltas] == [("insert", "Task"), ("update", "Task")]


def test_jsonify_may_give_what_django_can_encode(gateway: Gateway) -> None:
    row = Task.objects.create(title="a")
    note = Note.objects.create(task=row, price=Decimal("1.5"))
    assert gateway.deltas[-1]["data"] == {"id": str(note.id), "task": "a", "price": "1.50"}


def test_foreign_keys_and_files_are_told_by_key_and_name(gateway: Gateway) -> None:
    row = Task.objects.create(title="a")
    File.objects.create(task=row, file="a/b.txt")
    attachment = {"task": row.id, "file": "a/b.txt"}
    assert gateway.deltas[-1] == {"type": "insert", "model": "Attachment", "data": attachment}


def test_rows_that_go_with_others_are_told_too(gateway: Gateway) -> None:
    row = Task.objects.create(title="a")
    for _ in range(2):
        Note.objects.create(task=row)
    before = len(gateway.deltas)
    Task.objects.all().delete()
    assert sorted(delta["model"] for delta in gateway.deltas[before:]) == ["Note", "Note", "Task"]
    assert {delta["type"] for delta in gateway.deltas[before:]} == {"delete"}


def test_fixtures_are_skipped(gateway: Gateway) -> None:
    (row,) = serializers.deserialize("json", '[{"model": "todo.task", "pk": 5, "fields": {"title": "a"}}]')
    row.save()
    assert gateway.calls == []


def test_many_deltas_are_cut_into_calls_that_a_gateway_takes(gateway: Gateway) -> None:
    with transaction.atomic():
        publish_deltas({"type": "insert", "model": "Task", "data": list(range(500))} for _ in range(20))
    assert len(gateway.deltas) == 20
    assert 2 <= len(gateway.calls) <= 5
    assert all(len(call) * 503 <= 5000 for call in gateway.calls)


def test_deltas_are_kept_as_they_were_when_they_were_handed_over(gateway: Gateway) -> None:
    data = {"key": uuid.UUID(int=1)}
    with transaction.atomic():
        publish_deltas([{"type": "insert", "model": "Task", "data": data}])
        data.clear()
    assert gateway.deltas[0]["data"] == {"key": str(uuid.UUID(int=1))}


def test_what_is_no_json_fails_before_the_commit(gateway: Gateway) -> None:
    with pytest.raises(TypeError), transaction.atomic():
        Task.objects.create(title="a")
        publish_deltas([{"type": "insert", "model": "Task", "data": object()}])
    assert Task.objects.count() == 0
    assert gateway.calls == []


def hear_lost() -> list[tuple[Any, str]]:
    """Return a list to which lost deltas are added."""
    lost: list[tuple[Any, str]] = []

    def note(deltas: Any, error: Any, **_: Any) -> None:
        lost.append((deltas, error.code))

    deltas_lost.connect(note, weak=False, dispatch_uid="of the test")
    return lost


def test_gateway_that_is_gone_fails_no_save_and_what_is_lost_is_told(caplog: pytest.LogCaptureFixture) -> None:
    lost = hear_lost()
    with gateway_at("http://127.0.0.1:1/backend"):
        row = Task.objects.create(title="Buy milk")
        Task.objects.all().delete()
    assert [(deltas[0]["type"], code) for deltas, code in lost] == [
        ("insert", "unreachable"),
        ("delete", "unreachable"),
    ]
    assert row.pk is not None
    assert "1 deltas were committed and not published" in caplog.text
    assert "Buy milk" not in caplog.text  # no payload in a log
    deltas_lost.disconnect(dispatch_uid="of the test")


def test_all_that_a_commit_could_not_publish_is_told_at_once() -> None:
    lost = hear_lost()
    with gateway_at("http://127.0.0.1:1/backend"):
        publish_deltas({"type": "insert", "model": "Task", "data": [number] * 3000} for number in range(3))
    assert [[delta["data"][0] for delta in deltas] for deltas, _ in lost] == [[0, 1, 2]]
    deltas_lost.disconnect(dispatch_uid="of the test")


def test_refused_part_of_a_transaction_harms_no_other_part() -> None:
    lost = hear_lost()
    refusal = {"service": "datasync_backend", "message": {"type": "error", "message": "No", "code": "no"}}
    script = [answer(reply(None)), answer(refusal), answer(reply(None))]
    with ScriptedServer(script) as server, gateway_at(server.url):
        publish_deltas({"type": "insert", "model": "Task", "data": [number] * 3000} for number in range(3))
        assert len(server.requests) == 3
        assert [(len(deltas), deltas[0]["data"][0], code) for deltas, code in lost] == [(1, 1, "no")]
    deltas_lost.disconnect(dispatch_uid="of the test")


def test_settings_must_say_where_the_gateway_is() -> None:
    from django.conf import settings

    with override_settings():
        del settings.SNORKY_BACKEND_URL
        with pytest.raises(ImproperlyConfigured, match="SNORKY_BACKEND_URL"):
            Task.objects.create(title="a")
    with override_settings(SNORKY_BACKEND_URL="no url"), pytest.raises(ImproperlyConfigured, match="url"):
        Task.objects.create(title="a")


def test_callbacks_that_a_test_captures_are_all_of_its_block(gateway: Gateway) -> None:
    class Case(TestCase):
        def runTest(self) -> None:
            Task.objects.create(title="earlier")
            with self.captureOnCommitCallbacks(execute=True):
                Task.objects.create(title="captured")

    result = unittest.TestResult()
    unittest.TestSuite([Case()]).run(result)
    assert result.wasSuccessful() and result.testsRun == 1, result.errors
    assert [delta["data"]["title"] for delta in gateway.deltas] == ["captured"]


def test_model_must_say_what_may_be_published() -> None:
    class Silent(models.Model):
        class Meta:
            app_label = "todo"

    class Base(models.Model):
        class Meta:
            app_label = "todo"
            abstract = True

    with pytest.raises(ImproperlyConfigured, match="fields"):
        subscribable(Silent)
    with pytest.raises(ImproperlyConfigured, match="nowhere"):
        subscribable(fields=("nowhere",))(Silent)
    with pytest.raises(ImproperlyConfigured, match="note"):
        subscribable(fields=("note",))(Task)
    with pytest.raises(ImproperlyConfigured, match="abstract"):
        subscribable(fields=("id",))(Base)
