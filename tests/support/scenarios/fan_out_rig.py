"""A fan-out over recording transports, without a node."""

from collections.abc import Mapping, Sequence

from snorky.gateway import Metrics
from snorky.gateway.connection.connection import Connection
from snorky.gateway.delivery.fan_out import Fanout
from snorky.gateway.delivery.hub import Hub
from snorky.gateway.protocol.codec import decode_json
from snorky.gateway.protocol.splicing import PAYLOAD, Template
from snorky.gateway.protocol.ws_frames import Dialect
from tests.support.fakes.fake_wire import JSON, FakeTransport

KEY, OTHER = "s:a", "s:b"


class Source:
    """Records its calls; a test that pauses twice, or resumes without a pause, is wrong."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def pause(self) -> None:
        self.calls.append("pause")

    def resume(self) -> None:
        self.calls.append("resume")


class Rig:
    """A fan-out with a hub and subscribers that record what they get."""

    def __init__(self, chunk: int = 1000) -> None:
        self.hub = Hub()
        self.source = Source()
        self.metrics = Metrics()
        self.fanout = Fanout(self.hub, self.source, self.metrics, chunk=chunk, payload_max_bytes=100_000)
        self.wires: dict[Connection, FakeTransport] = {}

    def subscriber(self, key: str = KEY, dialect: Dialect = JSON) -> Connection:
        wire = FakeTransport()
        connection = Connection(wire, dialect, node_id="n", serial=len(self.wires))
        self.wires[connection] = wire
        self.add(connection, key)
        return connection

    def add(self, connection: Connection, key: str = KEY) -> None:
        self.hub.add(connection, key, Template("s", {"in": key, "is": PAYLOAD}))

    def got(self, connection: Connection, key: str = KEY) -> list[object]:
        """Payloads that a JSON client received in a channel."""
        lines = [decode_json(line) for line in b"".join(self.wires[connection].writes).splitlines()]
        messages = [line["message"] for line in lines if isinstance(line, dict)]
        return [message["is"] for message in messages if message["in"] == key]

    def drops(self, reason: str) -> float:
        return self.metrics.registry.get_sample_value("snorky_drops_total", {"reason": reason}) or 0.0

    def sample(self, name: str) -> float:
        return self.metrics.registry.get_sample_value(name) or 0.0


def numbers(*values: int, key: str = KEY) -> Mapping[str, Sequence[bytes]]:
    return {key: [b"%d" % value for value in values]}
