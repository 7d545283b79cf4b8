"""Chat rooms. Members authenticate with a token; only names that end with "@staff" may join rooms "staff:...".

    export SNORKY_AUTH__HMAC_SECRET=$(openssl rand -hex 32)   # the same in all shells
    .venv/bin/python examples/chat/server.py
    .venv/bin/python examples/talk.py --token "$(.venv/bin/python examples/chat/token_for.py Ada)" '{"service": "chat",
        "message": {"command": "join", "params": {"channel": "lobby"}, "callId": 1}}'

and then, in a third shell, as another user:

    .venv/bin/python examples/talk.py --token "$(.venv/bin/python examples/chat/token_for.py Bob)" \\
        '{"service": "chat", "message": {"command": "join", "params": {"channel": "lobby"}, "callId": 1}}' \\
        '{"service": "chat", "message": {"command": "send", "params": {"channel": "lobby", "body": "Hi"}, "callId": 2}}'

Browsers cannot set a header: they send the token as the subprotocol `bearer.TOKEN`, or to the service `auth`.
"""

from typing import Any

from snorky.gateway import ServiceRegistry, run
from snorky.services.auth import AuthService
from snorky.services.chat import ChatService
from snorky.services.rpc import Request


class House(ChatService):
    """The rule below lets every client with an identity join every room; this method restricts some of them."""

    def can_join(self, request: Request, channel: Any) -> bool:
        is_staff_only = isinstance(channel, str) and channel.startswith("staff:")
        return not is_staff_only or request.demand_identity().endswith("@staff")


if __name__ == "__main__":
    house = House("chat", rooms=[{"match": "*"}])
    run(public=ServiceRegistry([AuthService("auth"), house]), private=ServiceRegistry([]))
