"""Guards of the services."""

from tests.faults.lab.mutations.mutation import Mutation, test

__all__ = ["SERVICES_MUTATIONS"]

SERVICES_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="presence holds",
        file="services/pubsub/service.py",
        old="async with self.topics.reading(request.connection, channel):",
        new="if True:",
        argv=test("tests/unit/test_lists_and_notices.py", "test_presence_is_told_between"),
    ),
    Mutation(
        guard="recovery that cannot be taken",  # told so instead of closed, again and again
        file="services/pubsub/replies.py",
        old='    reply.instead = {"position": str(recovery.position), "recovered": False, "messages": []}\n',
        new="",
        argv=test("tests/unit/test_pubsub_rules.py", "test_who_cannot_take_what_it_missed"),
    ),
    Mutation(
        guard="bytes of a cursor",
        file="services/cursors.py",
        old="if json_size(data) > self._cursor_max_bytes:",
        new="if False:",
        argv=test("tests/unit/test_waiting.py", "test_a_cursor_is_bounded_in_bytes"),
    ),
    Mutation(
        guard="undone join",  # of a room whose list no client could take
        file="services/chat.py",
        old="                with suppress(BrokerUnavailable):  # then the node retries the removal\n"
        "                    await self.rosters.leave(request.connection, channel)\n",
        new="",
        argv=test("tests/unit/test_waiting.py", "test_a_join_whose_list_no_client_could_take and chat"),
    ),
    Mutation(
        guard="keys by rule",
        file="services/pubsub/service.py",
        old="rule.client_publish and (once is None or rule.client_keys)",
        new="rule.client_publish",
        argv=test("tests/unit/test_pubsub_rules.py", "test_clients_have_keys_where"),
    ),
    Mutation(
        guard="portion of a recovery",  # that the reply brings: a client behind a slow line waits for no more
        file="services/pubsub/replies.py",
        old="REPLY_MAX_BYTES: Final = 32_768",
        new="REPLY_MAX_BYTES: Final = 1 << 20",
        argv=test("tests/e2e/test_python_realtime.py", "test_client_behind_a_slow_line_recovers_in_one_go"),
    ),
    Mutation(
        guard="keys of one user",
        file="services/pubsub/parameters.py",
        old='    return f"identity {identity} {key}"',
        new='    return f"identity {key}"',
        argv=test("tests/unit/test_pubsub_rules.py", "test_keys_of_two_users_never_collide"),
    ),
)
