"""Guards of the services."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["SERVICES_MUTATIONS"]

SERVICES_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="presence holds",
        file="services/pubsub/presence.py",
        old="async with self.topics.reading(request.connection, channel):",
        new="if True:",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py",
            "test_presence_is_ordered_between_earlier_and_later_notices",
        ),
    ),
    Mutation(
        guard="recovery that cannot be taken",  # gets this error instead of being closed repeatedly
        file="services/pubsub/replies.py",
        old='    reply.instead = {"position": str(recovery.position), "recovered": False, "messages": []}\n',
        new="",
        argv=test(
            "tests/unit/services/test_pubsub_recovery.py",
            "test_client_that_cannot_receive_its_missed_messages_gets_recovered_false",
        ),
    ),
    Mutation(
        guard="bytes of a cursor",
        file="services/cursors.py",
        old="if json_size(data) > self._cursor_max_bytes:",
        new="if False:",
        argv=test("tests/unit/connection/test_waiting_replies.py", "test_a_cursor_is_bounded_in_bytes"),
    ),
    Mutation(
        guard="undone join",  # of a room whose list no client could receive
        file="services/chat.py",
        old="                with suppress(BrokerUnavailable):  # then the node retries the removal\n"
        "                    await self.rosters.leave(request.connection, channel)\n",
        new="",
        argv=test(
            "tests/unit/connection/test_waiting_replies.py",
            "test_a_join_with_a_list_too_large_for_a_client_leaves_no_state and chat",
        ),
    ),
    Mutation(
        guard="keys by rule",
        file="services/pubsub/publishing.py",
        old="check_allowed(once is None or rule.client_keys)",
        new="pass",
        argv=test("tests/unit/services/test_pubsub_rules.py", "test_clients_have_keys_where"),
    ),
    Mutation(
        guard="portion of a recovery",  # in the reply: a client on a slow link waits for no more
        file="services/pubsub/replies.py",
        old="REPLY_MAX_BYTES: Final = 32_768",
        new="REPLY_MAX_BYTES: Final = 1 << 20",
        argv=test("tests/e2e/test_python_realtime.py", "test_client_on_a_slow_link_recovers_in_one_attempt"),
    ),
    Mutation(
        guard="keys of one user",
        file="services/pubsub/parameters.py",
        old='    return f"identity {identity} {key}"',
        new='    return f"identity {key}"',
        argv=test("tests/unit/services/test_pubsub_rules.py", "test_keys_of_two_users_never_collide"),
    ),
)
