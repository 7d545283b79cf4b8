"""Service `gateway`: answers clients' requests about the gateway itself. Its notice `moving` has the same name."""

from typing import Any

from snorky.gateway._version import __version__
from snorky.gateway.connection.connection import Connection
from snorky.gateway.errors import Refused
from snorky.gateway.sdk.service import Service

__all__ = ["InfoService"]


class UnknownCommand(Refused):
    """The gateway service does not know this command. Raised by `InfoService.on_message`."""

    code = "unknown_command"


class InfoService(Service):
    """Answers `{"command": "info", "callId": C}` with node, connection, encoding and version."""

    allows_anonymous = True

    def __init__(self, name: str = "gateway") -> None:
        super().__init__(name)

    def on_message(self, connection: Connection, message: Any) -> None:
        """Answer `info`. Raises UnknownCommand: anything else."""
        if not isinstance(message, dict) or message.get("command") != "info":
            raise UnknownCommand("Unknown command")
        data = {
            "node": self.cluster.node_id,
            "connection": connection.id,
            "encoding": connection.dialect.encoding.value,
            "version": __version__,
        }
        reply = {"type": "response", "data": data}
        if "callId" in message:
            reply["callId"] = message["callId"]
        self.send(connection, reply)
