"""`on_channel` is called when a channel gets its first subscriber on this node, and when it has lost its last one."""

from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from tests.support.fakes.fake_wire import JSON, FakeTransport

TEMPLATE = Template("s", PAYLOAD)


def test_only_the_first_and_the_last_subscriber_are_reported() -> None:
    hub, calls = Hub(), list[tuple[str, bool]]()
    hub.on_channel = lambda key, begins: calls.append((key, begins))
    one, other = (Connection(FakeTransport(), JSON, node_id="n", serial=serial) for serial in (1, 2))
    hub.add(one, "s:a", TEMPLATE)
    hub.add(other, "s:a", TEMPLATE, is_pending=True)
    hub.add(other, "s:b", TEMPLATE)
    hub.remove(one, "s:a")
    assert calls == [("s:a", True), ("s:b", True)]
    hub.remove_all(other)
    assert sorted(calls[2:]) == [("s:a", False), ("s:b", False)]
