"""Guards of permissions: each check of a rule, an owner or a token."""

from functools import partial

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PERMISSION_MUTATIONS"]

_ACCESS = "gateway/permissions/access.py"
_OWNERS = "gateway/permissions/owners.py"
_PUBSUB = "services/pubsub/service.py"
_GRANTS = partial(test, "tests/unit/services/test_subscription_tokens.py")
_RELOAD = partial(test, "tests/unit/runtime/test_reload.py")
_TABLE = test("tests/e2e/test_permissions.py", "true and json")
_MODEL = test("tests/unit/permissions/test_owners.py", "model or identity_owns or no_texts")


def _check(guard: str, file: str, old: str) -> Mutation:
    return Mutation(guard=guard, file=file, old=old, new="pass", argv=_TABLE)


PERMISSION_MUTATIONS: tuple[Mutation, ...] = (
    _check("may publish", "services/pubsub/publishing.py", 'self.demand(request, "publish", channel)'),
    _check("may read history", "services/pubsub/history.py", 'self.demand(request, "history", channel)'),
    _check("may list subscribers", "services/pubsub/presence.py", 'self.demand(request, "presence", channel)'),
    _check(
        "may join or subscribe", "services/rpc.py", "check_allowed(self.permits(request, operation, channel, grant))"
    ),
    Mutation(
        guard="may join a room, before hooks",
        file="services/chat.py",
        old='self.demand(request, "join", channel, grant)',
        new="pass",
        argv=_RELOAD("join_under_way"),
    ),
    Mutation(
        guard="may join a document, before hooks",
        file="services/cursors.py",
        old='self.demand(request, "join", document, grant)',
        new="pass",
        argv=_RELOAD("join_under_way"),
    ),
    Mutation(
        guard="may subscribe, before hooks",
        file=_PUBSUB,
        old='self.demand(request, "subscribe", channel, grant)\n            reply',
        new="reply",
        argv=_RELOAD("subscription_under_way"),
    ),
    Mutation(
        guard="may subscribe by rules that are replaced meanwhile",
        file="services/pubsub/subscribing.py",
        old='self.demand_still(request, "subscribe", channel, grant)',
        new="pass",
        argv=_RELOAD("subscription_under_way"),
    ),
    Mutation(
        guard="may join a room by rules that are replaced meanwhile",
        file="services/chat.py",
        old='self.demand_still(request, "join", channel, grant)',
        new="pass",
        argv=_RELOAD("join_under_way"),
    ),
    Mutation(
        guard="may join a document by rules that are replaced meanwhile",
        file="services/cursors.py",
        old='self.demand_still(request, "join", document, grant)',
        new="pass",
        argv=_RELOAD("join_under_way"),
    ),
    Mutation(
        guard="may register a name",
        file="services/messaging.py",
        old="self._permits(request, name) and ",
        new="",
        argv=_TABLE,
    ),
    Mutation(
        guard="may acquire a model",
        file="services/datasync/service.py",
        old='self.demand(request, "acquire", model)',
        new="pass",
        argv=_TABLE,
    ),
    Mutation(
        guard="a grant of one identity",
        file="services/datasync/service.py",
        old="check_allowed(grant.identity is None or grant.identity == request.identity)",
        new="pass",
        argv=test("tests/unit/services/test_permissions.py", "test_a_grant_of_one_identity"),
    ),
    Mutation(
        guard="closed without a rule",
        file=_ACCESS,
        old="(self._unmatched is None and not is_authenticating)",
        new="self._unmatched is None",
        argv=test("tests/unit/services/test_permissions.py", "test_without_rules"),
    ),
    Mutation(
        guard="own name by default",
        file="services/messaging.py",
        old="self.access = _access(self.name, OWN_NAME, None)",
        new="pass",
        argv=test("tests/unit/services/test_permissions.py", "test_a_client_registers_its_own_identity"),
    ),
    Mutation(
        guard="an identity counts",
        file=_ACCESS,
        old='word == "authenticated" and client.identity is not None',
        new='word == "authenticated"',
        argv=_TABLE,
    ),
    Mutation(
        guard="placeholders mean owners",
        file=_ACCESS,
        old='("owner", "token") if rule.pattern.sources else ("authenticated",)',
        new='("authenticated",)',
        argv=_TABLE,
    ),
    Mutation(
        guard="publishing needs a word",
        file=_ACCESS,
        old='if operation == "publish":\n        return ("token",)',
        new='if operation == "publish":\n        return ("authenticated",)',
        argv=_TABLE,
    ),
    Mutation(
        guard="every placeholder counts",
        file=_OWNERS,
        old="return all(",
        new="return any(",
        argv=test("tests/unit/permissions/test_owners.py", "test_every_placeholder_counts"),
    ),
    Mutation(
        guard="names of channels that are no texts",
        file=_OWNERS,
        old='if segment.startswith("~"):',
        new='if segment == "~":',
        argv=_MODEL,
    ),
    Mutation(
        guard="true is not 1",
        file=_OWNERS,
        old=" and not isinstance(value, bool)",
        new="",
        argv=test("tests/unit/permissions/test_owners.py", "test_true_is_no_text"),
    ),
    Mutation(
        guard="a segment ends at a separator",
        file="gateway/config/rules/patterns.py",
        old='re.compile(r"[^:./]+")',
        new='re.compile(r"[^:/]+")',
        argv=test("tests/unit/config/rules/test_patterns.py", "segment or regular"),
    ),
    Mutation(
        guard="placeholders in Redis",
        file="gateway/redis/history/lua/library/snorky_publish.lua",
        old="'^[^:./]+'",
        new="'^[^:]+'",
        argv=test("tests/contract/test_function_rules.py", "test_placeholders_match"),
    ),
    Mutation(
        guard="claims of one service",
        file="gateway/permissions/capabilities.py",
        old="if service == PUBSUB:",
        new="if True:",
        argv=test("tests/unit/permissions/test_capabilities.py", "test_claims_permit_what_they_say"),
    ),
    Mutation(
        guard="a list of operations",
        file="gateway/permissions/capabilities.py",
        old="isinstance(operations, list) and ",
        new="",
        argv=test("tests/unit/permissions/test_capabilities.py", "test_claims_of_another_shape"),
    ),
    Mutation(
        guard="a hook's identities close it",
        file="gateway/http/websocket/handler.py",
        old="registry.expect_identities()",
        new="pass",
        argv=test("tests/unit/services/test_permissions.py", "test_a_handler_with_a_hook"),
    ),
    Mutation(
        guard="token of another client",
        file="gateway/auth/authenticator.py",
        old="if found.identity != connection.identity:",
        new="if False:",
        argv=_GRANTS("another_token or without_an_identity"),
    ),
    Mutation(
        guard="token of another channel",
        file="gateway/auth/authenticator.py",
        old="if (found.service, found.channel) != (service, channel):",
        new="if False:",
        argv=_GRANTS("another_token"),
    ),
    Mutation(
        guard="revoked subscription token",
        file="gateway/auth/authenticator.py",
        old="if grant.is_hit(revocation):",
        new="if False:",
        argv=_GRANTS("revocation"),
    ),
    Mutation(
        guard="revocation of a subscription",
        file="gateway/auth/authenticator.py",
        old="        self.grants.on_revocation(revocation)\n",
        new="",
        argv=_GRANTS("revocation_of_the_token"),
    ),
    Mutation(
        guard="grant that ended while it was checked",
        file="gateway/auth/authenticator.py",
        old="if grant.end is not None:",
        new="if False:",
        argv=_GRANTS("ends_while_it_is_checked"),
    ),
    Mutation(
        guard="grant that ended while its client subscribed",
        file="gateway/auth/grants.py",
        old="if grant.end is not None:",
        new="if False:",
        argv=_GRANTS("subscribes_or_refreshes"),
    ),
    Mutation(
        guard="end of a grant",
        file="gateway/auth/grants.py",
        old="            grant.on_end(code, reason)",
        new="            pass",
        argv=_GRANTS("ends_with_its_token"),
    ),
    Mutation(
        guard="grants of closed connections",
        file="gateway/auth/authenticator.py",
        old="        self.grants.forget(connection)\n",
        new="",
        argv=_GRANTS("outlive_its_connection"),
    ),
    Mutation(
        guard="present token after a refused refresh",
        file="services/pubsub/service.py",
        old='self.demand(request, "subscribe", channel, grant)\n            await self._demand',
        new="await self._demand",
        argv=_GRANTS("refused_refresh"),
    ),
    Mutation(
        guard="operations of the token at hand",
        file=_ACCESS,
        old="if granted is None:\n            granted = ()",
        new="if not granted or operation not in granted:\n            granted = ()",
        argv=_GRANTS("refused_refresh"),
    ),
    Mutation(
        guard="token of an ended subscription",
        file="gateway/sdk/topics.py",
        old="        self._cluster.auth.grants.drop(connection, channel_key(self._service, channel))\n",
        new="",
        argv=_GRANTS("while_its_subscription_lasts"),
    ),
    Mutation(
        guard="deadlines behind a stalled loop",
        file="gateway/delivery/fan_out.py",
        old="        self.before_delivery()\n",
        new="",
        argv=_GRANTS("loop_was_stalled"),
    ),
    Mutation(
        guard="cursors of an ended subscription",
        file="services/cursors.py",
        old="        self._take_own(connection, channel)\n",
        new="",
        argv=_GRANTS("rooms_and_documents"),
    ),
    Mutation(
        guard="rosters of an ended subscription",
        file="gateway/sdk/service.py",
        old="            self.rosters.leave_soon(connection, channel)",
        new="            pass",
        argv=_GRANTS("rooms_and_documents or ends_with_its_token"),
    ),
    Mutation(
        guard="rights at a refresh",
        file="gateway/auth/authenticator.py",
        old="        self.on_other_claims(connection)\n",
        new="",
        argv=_GRANTS("rights_are_looked_at_again or authenticating_again"),
    ),
    Mutation(
        guard="subscription behind a refused refresh",
        file="services/granting.py",
        old="        if is_new:\n            service.cut",
        new="        if True:\n            service.cut",
        argv=_GRANTS("subscribes_or_refreshes"),
    ),
    Mutation(
        guard="an end that fails",
        file="gateway/auth/grants.py",
        old='            grant.connection.close(CloseCode.INTERNAL_ERROR, "Internal error")\n',
        new="            raise\n",
        argv=_GRANTS("fails_to_end"),
    ),
    Mutation(
        guard="a place entered after it was left",
        file="gateway/presence/ownership.py",
        old="        if member is None:  # it left meanwhile",
        new="        if False:  # it left meanwhile",
        argv=_GRANTS("cursor_made_while"),
    ),
    Mutation(
        guard="registries that require an identity",
        file="gateway/sdk/registry.py",
        old="if self._has_hook or self.requires_identity:",
        new="if self._has_hook:",
        argv=test("tests/unit/services/test_permissions.py", "registry_that_requires"),
    ),
    Mutation(
        guard="own rules for Pusher's channels stay closed",
        file="gateway/config/pusher.py",
        old="own = list(map(_completed, written))",
        new="own = list(written)",
        argv=test("tests/cluster/test_migration_from_pusher.py", "test_own_rules_come_first_and_stay_closed"),
    ),
    Mutation(
        guard="public cache channels of Pusher are the backend's",
        file="gateway/config/pusher.py",
        old='{"match": "cache-*", "allow_publish": "nobody", **_CACHE}',
        new='{"match": "cache-*", **_CACHE}',
        argv=test("tests/cluster/test_migration_from_pusher.py", "test_clients_of_other_protocols_cannot_do_more"),
    ),
    Mutation(
        guard="Pusher's clients need not log in with a token in time",
        file="gateway/sdk/registry.py",
        old="        return connection.frontend is None or not connection.frontend.authenticates\n",
        new="        return True\n",
        argv=test("tests/cluster/test_migration_from_pusher.py", "test_where_an_identity_is_required"),
    ),
)
