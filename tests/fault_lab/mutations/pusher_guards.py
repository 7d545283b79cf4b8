"""Guards of what Pusher's clients share with others: grants, rosters, quotas, rules."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_GUARDS_MUTATIONS"]

_TESTS = "tests/cluster/test_pusher_guards.py"
_SENDER = "tests/unit/http/protocols/pusher/test_webhook_sender.py"

PUSHER_GUARDS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="grants that have not started",
        file="gateway/sdk/service.py",
        old="            if entered is not None:  # it may replace the present one, or fail\n",
        new="            if False:\n",
        argv=test(_TESTS, "signing_in"),
    ),
    Mutation(
        guard="size of a list of members",
        file="services/pubsub/replies.py",
        old="    if len(data) > MEMBERS_MAX or len(msgspec.json.encode(data)) > max_bytes:\n",
        new="    if len(data) > MEMBERS_MAX:\n",
        argv=test(_TESTS, "list_of_members"),
    ),
    Mutation(
        guard="version of a list of members in a reply",
        file="services/pubsub/presence.py",
        old="        if not terms.lists_members:  # else the reply has a later list\n",
        new="        if True:\n",
        argv=test(_TESTS, "list_contains_is_not_added"),
    ),
    Mutation(
        guard="quota of histories that a client may begin",
        file="gateway/sdk/topics.py",
        old="            charge = self._cluster.quotas.charge(connection, STATE_BYTES + len(key))\n",
        new="            pass\n",
        argv=test(_TESTS, "histories_that_a_client"),
    ),
    Mutation(
        guard="private channels of a program's own service",
        file="gateway/http/protocols/pusher/websocket.py",
        old="            demand_closed(self._websockets.registry, app)\n",
        new="            pass\n",
        argv=test(_TESTS, "service_of_a_program"),
    ),
    Mutation(
        guard="wide rules behind those of Pusher",
        file="gateway/config/pusher.py",
        old="    at = next((number for number, rule in enumerate(written) if _is_wider(rule)), len(written))\n",
        new="    at = len(written)\n",
        argv=test(_TESTS, "open_no_private_channel"),
    ),
    Mutation(
        guard="own rules for Pusher's channels",
        file="gateway/config/pusher.py",
        old="    own = list(map(_completed, written))\n",
        new="    own = list(written)\n",
        argv=test(_TESTS, "open_no_private_channel"),
    ),
    Mutation(
        guard="apps of a running node at a reload",
        file="gateway/runtime/reload.py",
        old='load_service("services", name, with_rules(name, table, apps), others)',
        new='load_service("services", name, table, others)',
        argv=test(_TESTS, "reload_without"),
    ),
    Mutation(
        guard="rules of a reload that would open private channels",
        file="gateway/runtime/reload.py",
        old="                    demand_closed(others, app)\n",
        new="                    pass\n",
        argv=test(_TESTS, "reload_that_would_open"),
    ),
    Mutation(
        guard="event of a newer node in the queue of webhooks",
        file="gateway/http/protocols/pusher/webhooks.py",
        old='        return b""  # of a newer node',
        new="        raise KeyError(event)  # of a newer node",
        argv=test("tests/unit/http/protocols/pusher/test_webhooks.py", "event_of_a_newer_node"),
    ),
    Mutation(
        guard="names of a question about channels",
        file="gateway/http/protocols/pusher/surveys.py",
        old="        if question.names and len(question.names) + len(names) > NAMES_MAX:\n",
        new="        if False:\n",
        argv=test("tests/unit/http/protocols/pusher/test_api_surveys.py", "accepts_no_further_names"),
    ),
    Mutation(
        guard="questions that all callers gave up",
        file="gateway/http/protocols/pusher/surveys.py",
        old="            if not question.callers and self._waiting.get(key) is question:\n",
        new="            if False:\n",
        argv=test("tests/unit/http/protocols/pusher/test_api_surveys.py", "gave_up_is_not_asked"),
    ),
    Mutation(
        guard="webhooks: lease of the sender after it has read the queue",
        file="gateway/http/protocols/pusher/webhook_sender.py",
        old="        if not self._log.is_sender:  # its lease has ended meanwhile\n",
        new="        if False:\n",
        argv=test(_SENDER, "lease_ends_while_it_reads"),
    ),
    Mutation(
        guard="webhooks: old events of another sender",
        file="gateway/http/protocols/pusher/webhook_sender.py",
        old="            if self._log.is_sender:  # else another node sends them, and nothing was removed\n",
        new="            if True:\n",
        argv=test(_SENDER, "another_node_sends_are_not_counted"),
    ),
    Mutation(
        guard="webhooks: accepted events at a stop",
        file="gateway/http/protocols/pusher/webhook_sender.py",
        old="                if self._sent_id and self._log.is_sender:\n",
        new="                if False:\n",
        argv=test(_SENDER, "stop_tells_redis"),
    ),
)
