"""The smallest service: it returns every message.

.venv/bin/python examples/echo/server.py
.venv/bin/python examples/talk.py '{"service": "echo", "message": {"any": "JSON"}}'
"""

from typing import Any

from snorky.gateway import Connection, Service, ServiceRegistry, run


class EchoService(Service):
    def on_message(self, connection: Connection, message: Any) -> None:
        self.send(connection, message)


if __name__ == "__main__":
    run(public=ServiceRegistry([EchoService("echo")]), private=ServiceRegistry([]))
