"""Guards of permissions by the token and by the key: what the tables of docs/permissions.md promise."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["TABLE_MUTATIONS"]

_BY_TOKEN = "tests/e2e/test_permissions_of_tokens.py"
_BY_PROTOCOL = "tests/e2e/test_permissions_of_protocols.py"
_PUSHER = test(_BY_PROTOCOL, "true_for_pusher")
_TABLE = test("tests/e2e/test_permissions.py", "true and json")
_TOKENS = test(_BY_TOKEN, "true and json")
_TOKENS_OF_CENTRIFUGE = test(_BY_TOKEN, "true_for_centrifuge")
_TOKENS_OF_PUSHER = test(_BY_TOKEN, "true_for_pusher")
_KEYS = test("tests/e2e/test_permissions_of_backends.py", "true and node")

TABLE_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="a client in a handshake",
        file="gateway/http/websocket/handler.py",
        old="session=entry.session, refusal=entry.refusal",
        new="session=entry.session, refusal=None",
        argv=_TOKENS,
    ),
    Mutation(
        guard="a client in a SockJS request",
        file="gateway/http/sockjs/session_store.py",
        old="who, refusal = entry.session, entry.refusal\n",
        new="who, refusal = entry.session, None\n",
        argv=test(_BY_TOKEN, "true and xhr"),
    ),
    Mutation(
        guard="signature of a token",
        file="gateway/auth/tokens.py",
        old="options=options,",
        new='options={**options, "verify_signature": False},',
        argv=_TOKENS,
    ),
    Mutation(
        guard="expired connection token",
        file="gateway/auth/tokens.py",
        old='"require": [*expiry, claim], "verify_sub": False',
        new='"require": [*expiry, claim], "verify_sub": False, "verify_exp": False',
        argv=_TOKENS,
    ),
    Mutation(
        guard="expired subscription token",
        file="gateway/auth/tokens.py",
        old='"require": expiry, "verify_sub": False',
        new='"require": expiry, "verify_sub": False, "verify_exp": False',
        argv=_TOKENS,
    ),
    Mutation(
        guard="connection token as a subscription token",
        file="gateway/auth/tokens.py",
        old='        if "channel" not in claims:  # its value may be null\n            raise InvalidToken("claim")\n',
        new='        claims.setdefault("channel", "c-json")\n',
        argv=_TOKENS,
    ),
    Mutation(
        guard="revoked connection token",
        file="gateway/auth/authenticator.py",
        old="                if session.is_hit(revocation):\n",
        new="                if False:\n",
        argv=_TOKENS,
    ),
    Mutation(
        guard="revocation of a connection",
        file="gateway/auth/authenticator.py",
        old="        self._sessions.on_revocation(revocation)\n",
        new="",
        argv=_TOKENS,
    ),
    Mutation(
        guard="end of a connection token",
        file="gateway/auth/sessions.py",
        old="            session.deadline = self._deadlines.add(within_s, session)\n",
        new="            pass\n",
        argv=_TOKENS,
    ),
    Mutation(
        guard="one identity for a connection",
        file="gateway/auth/authenticator.py",
        old="if connection.identity is not None and connection.identity != session.who.identity:",
        new="if False:",
        argv=_TOKENS,
    ),
    Mutation(
        guard="a required identity",
        file="gateway/sdk/registry.py",
        old="if self.lacks_identity(connection) and not self[envelope.service].allows_anonymous:",
        new="if False:",
        argv=_TOKENS,
    ),
    Mutation(
        guard="time to authenticate",
        file="gateway/auth/sessions.py",
        old='what.close(CloseCode.AUTHENTICATION_TIMEOUT, "Not authenticated in time")',
        new="pass",
        argv=_TOKENS,
    ),
    Mutation(
        guard="operations of a subscription token",
        file="gateway/permissions/access.py",
        old="return operation in granted or permits",
        new="return granted != () or permits",
        argv=_TOKENS,
    ),
    Mutation(
        guard="an owner counts",
        file="gateway/permissions/access.py",
        old='word == "owner" and owns(rule.pattern, name, client.identity, client.claims)',
        new='word == "owner"',
        argv=_TABLE,
    ),
    Mutation(
        guard="a subscriber counts",
        file="gateway/permissions/access.py",
        old='word == "subscriber" and f"{self._service}:{name}" in client.channels',
        new='word == "subscriber"',
        argv=_TABLE,
    ),
    Mutation(
        guard="a token counts",
        file="gateway/permissions/access.py",
        old='word == "token" and self._has_token(operation, name, client, granted)',
        new='word == "token"',
        argv=_TABLE,
    ),
    Mutation(
        guard="an identity in a room",
        file="services/chat.py",
        old="        request.demand_identity()\n        async with granted",
        new="        async with granted",
        argv=_TABLE,
    ),
    Mutation(
        guard="an identity in a document",
        file="services/cursors.py",
        old="        request.demand_identity()\n        async with granted",
        new="        async with granted",
        argv=_TABLE,
    ),
    Mutation(
        guard="members of a presence channel",
        file="services/pubsub/subscribing.py",
        old='check_allowed(self.permits(request, "presence", channel, grant, is_subscribing=True))',
        new="pass",
        argv=_PUSHER,
    ),
    Mutation(
        guard="last event of a cache channel",
        file="services/pubsub/subscribing.py",
        old='if not self.permits(request, "history", channel, grant, is_subscribing=True):',
        new="if False:",
        argv=_PUSHER,
    ),
    Mutation(
        guard="events of clients on public channels",
        file="gateway/http/protocols/pusher/client.py",
        old="if not (self._app.client_events and kind.has_client_events):",
        new="if False:",
        argv=_PUSHER,
    ),
    Mutation(
        guard="signature of a private channel",
        file="gateway/http/protocols/pusher/client.py",
        old='if not is_signed(self._app, signed, data.get("auth")):',
        new="if False:",
        argv=test(_BY_PROTOCOL, "no_valid_signature"),
    ),
    Mutation(
        guard="centrifuge: expired subscription token",
        file="gateway/auth/tokens.py",
        old='"require": expiry, "verify_sub": False',
        new='"require": expiry, "verify_sub": False, "verify_exp": False',
        argv=_TOKENS_OF_CENTRIFUGE,
    ),
    Mutation(
        guard="centrifuge: a refused token in a handshake",
        file="gateway/http/protocols/centrifuge/websocket.py",
        old="DIALECTS[form], remote_ip, session=session, refusal=refusal)",
        new="DIALECTS[form], remote_ip, session=session, refusal=None)",
        argv=_TOKENS_OF_CENTRIFUGE,
    ),
    Mutation(
        guard="pusher: a refused token in a handshake",
        file="gateway/http/protocols/pusher/websocket.py",
        old="dialect_of(service), remote_ip, session=session, refusal=refusal)",
        new="dialect_of(service), remote_ip, session=session, refusal=None)",
        argv=_TOKENS_OF_PUSHER,
    ),
    Mutation(
        guard="pusher: a signature in place of a subscription token",
        file="gateway/http/protocols/pusher/client.py",
        old='if not is_signed(self._app, signed, data.get("auth")):',
        new="if False:",
        argv=_TOKENS_OF_PUSHER,
    ),
    Mutation(
        guard="pusher: a signature is for one connection",
        file="gateway/http/protocols/pusher/names.py",
        old="return f\"{int(node.removeprefix('n'), 16)}.{serial}\"",
        new="return f\"{int(node.removeprefix('n'), 16)}.1\"",
        argv=_TOKENS_OF_PUSHER,
    ),
    Mutation(
        guard="pusher: a signature in place of an identity",
        file="gateway/http/protocols/pusher/client.py",
        old='if not isinstance(text, str) or not is_signed(self._app, signed, data.get("auth")):',
        new="if not isinstance(text, str):",
        argv=_TOKENS_OF_PUSHER,
    ),
    Mutation(
        guard="pusher: a required identity",
        file="gateway/http/protocols/pusher/client.py",
        old="if self._endpoint.registry.requires_identity and connection.identity is None:",
        new="if False:",
        argv=_TOKENS_OF_PUSHER,
    ),
    Mutation(
        guard="a wrong key",
        file="gateway/config/settings.py",
        old="return found[0] if found else None",
        new="return found[0] if found else next(iter(self.keys))",
        argv=_KEYS,
    ),
)
