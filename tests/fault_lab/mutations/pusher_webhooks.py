"""Guards of Pusher's webhooks: which node sends which events, once, and in which order."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_WEBHOOKS_MUTATIONS"]

EXCHANGE = "gateway/redis/lua/webhook_exchange.lua"
SENDER = "gateway/http/protocols/pusher/webhook_sender.py"
POSTS = "gateway/http/outbound/webhook_posts.py"
LOG_TEST = "tests/contract/test_webhooks.py"
SENDER_TEST = "tests/unit/http/protocols/pusher/test_webhook_sender.py"
EXPIRY_TEST = "tests/unit/http/protocols/pusher/test_webhook_expiry.py"
POSTS_TEST = "tests/unit/http/outbound/test_webhook_posts.py"
HERE = "tests/cluster/test_pusher_webhooks.py"
HERE_COUNTS = "tests/cluster/test_pusher_counts.py"

PUSHER_WEBHOOKS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="webhooks: a fact begins with the first node",
        file=EXCHANGE,
        old="redis.call('HINCRBY', counts, fact, '1') == 1",
        new="redis.call('HINCRBY', counts, fact, '1') >= 1",
        argv=test(LOG_TEST, "test_fact_begins_with_the_first_node_and_ends_after_the_last"),
    ),
    Mutation(
        guard="webhooks: a fact ends after the last node",
        file=EXCHANGE,
        old="redis.call('HINCRBY', counts, fact, '-1') <= 0",
        new="redis.call('HINCRBY', counts, fact, '-1') <= 1",
        argv=test(LOG_TEST, "test_fact_begins_with_the_first_node_and_ends_after_the_last"),
    ),
    Mutation(
        guard="webhooks: a page that reloads sends nothing",
        file=EXCHANGE,
        old="redis.call('ZREM', late, fact) == 0 and sign",
        new="sign",
        argv=test(HERE, "test_page_that_reloads_within_three_seconds_sends_nothing"),
    ),
    Mutation(
        guard="webhooks: a repeated exchange is applied once",
        file=EXCHANGE,
        old="is_repeated and 12 or #ARGV",
        new="#ARGV",
        argv=test(LOG_TEST, "test_repeated_exchange_is_applied_once"),
    ),
    Mutation(
        guard="webhooks: a pause of Redis fences no node",
        file=EXCHANGE,
        old="local was_paused = pause > gap or pause < 0",
        new="local was_paused = false",
        argv=test(LOG_TEST, "test_no_node_is_fenced_because_redis_was_silent"),
    ),
    Mutation(
        guard="webhooks: a dead node is fenced",
        file=EXCHANGE,
        old="  elseif now - since >= sighting then\n",
        new="  elseif false then\n",
        argv=test(LOG_TEST, "test_dead_node_is_fenced_and_its_facts_end_members_first"),
    ),
    Mutation(
        guard="webhooks: facts of a killed node are released",
        file=EXCHANGE,
        old="    redis.call('ZADD', dead, text(now), each)\n",
        new="",
        argv=test(HERE, "test_node_that_is_killed_leaves_its_channels_and_members"),
    ),
    Mutation(
        guard="webhooks: a fenced node says nothing",
        file=EXCHANGE,
        old="if redis.call('ZSCORE', fenced, owner) then",
        new="if false then",
        argv=test(LOG_TEST, "test_dead_node_is_fenced_and_its_facts_end_members_first"),
    ),
    Mutation(
        guard="webhooks: a loss of Redis is noticed",
        file=EXCHANGE,
        old="if not (is_repeated or is_next or mode == 'reset') then",
        new="if false then",
        argv=test(LOG_TEST, "test_state_that_redis_lost_is_noticed_and_restored_without_events"),
    ),
    Mutation(
        guard="webhooks: clients cannot fill the queue",
        file=EXCHANGE,
        old="enqueue(ARGV[at], 0.5)",
        new="enqueue(ARGV[at], 1)",
        argv=test(LOG_TEST, "test_queue_is_bounded_in_number_and_reports_of_clients_get_half_of_it"),
    ),
    Mutation(
        guard="webhooks: the bytes of the queue are bounded",
        file=EXCHANGE,
        old=" or bytes + #event > bytes_max * share",
        new="",
        argv=test(LOG_TEST, "test_queue_is_bounded_in_bytes"),
    ),
    Mutation(
        guard="webhooks: only the sender removes events",
        file="gateway/redis/lua/webhook_sent.lua",
        old="if redis.call('HGET', KEYS[1], 'sender') ~= ARGV[1] then",
        new="if false then",
        argv=test(LOG_TEST, "test_one_node_sends_and_only_it_removes_what_was_sent"),
    ),
    Mutation(
        guard="webhooks: only the sender sends",
        file=SENDER,
        old="        if not self._log.is_sender:\n            return 0.0",
        new="        if False:\n            return 0.0",
        argv=test(SENDER_TEST, "test_node_that_is_not_the_sender_any_more"),
    ),
    Mutation(
        guard="webhooks: an exchange of unknown outcome is repeated unchanged",
        file=SENDER,
        old="self._taken = self._taken or self._take()",
        new="self._taken = self._take()",
        argv=test(SENDER_TEST, "test_exchange_of_unknown_outcome_is_repeated_unchanged"),
    ),
    Mutation(
        guard="webhooks: a channel is occupied while members are on it",
        file=SENDER,
        old="channel in self._occupied or channel in self._members",
        new="channel in self._occupied",
        argv=test(SENDER_TEST, "test_channel_is_claimed_before_its_first_member_and_released_after_its_last"),
    ),
    Mutation(
        guard="webhooks: accepted events are not sent again",
        file=SENDER,
        old="        if self._sent_id:\n",
        new="        if False:\n",
        argv=test(SENDER_TEST, "test_accepted_events_are_not_sent_again_because_redis_did_not_answer"),
    ),
    Mutation(
        guard="webhooks: only old events are dropped",
        file=SENDER,
        old="if each.age_s > self._pace.keep_s]",
        new="]",
        argv=test(EXPIRY_TEST, "test_only_events_older_than_five_minutes_are_dropped"),
    ),
    Mutation(
        guard="webhooks: old events are not posted",
        file=SENDER,
        old="if expired := [each for each in batch if ",
        new="if expired := [each for each in batch if self._failures and ",
        argv=test(EXPIRY_TEST, "test_only_events_older_than_five_minutes_are_dropped"),
    ),
    Mutation(
        guard="webhooks: only a node that may send is elected",
        file=EXCHANGE,
        old="if not sender and may_send then",
        new="if not sender then",
        argv=test(LOG_TEST, "test_only_a_node_that_may_send_becomes_the_sender"),
    ),
    Mutation(
        guard="webhooks: a sender that may not send any more loses the role",
        file=EXCHANGE,
        old=" or (sender == owner and not may_send)) then",
        new=") then",
        argv=test(LOG_TEST, "test_sender_that_may_not_send_any_more_loses_the_role_at_once"),
    ),
    Mutation(
        guard="webhooks: a dead sender loses the role",
        file=EXCHANGE,
        old="not redis.call('ZSCORE', owners, sender) or ",
        new="",
        argv=test(LOG_TEST, "test_sender_that_died_is_followed_only_by_a_node_that_may_send"),
    ),
    Mutation(
        guard="webhooks: a node without the URL says that it may not send",
        file=SENDER,
        old='[b"!"] if app.webhook_url else []',
        new='[b"!"]',
        argv=test(HERE_COUNTS, "test_webhooks_come_while_only_some_nodes_have_their_url"),
    ),
    Mutation(
        guard="webhooks: a node that restores its state keeps the role",
        file=SENDER,
        old="exchange([*self._role, *missing[start : start + CHANGES_MAX]]",
        new="exchange([*missing[start : start + CHANGES_MAX]]",
        argv=test(EXPIRY_TEST, "test_exchanges_say_whether_this_node_may_send"),
    ),
    Mutation(
        guard="webhooks: reports that wait are bounded",
        file="gateway/http/protocols/pusher/webhooks.py",
        old="if len(self._waiting) >= self._most or ",
        new="if ",
        argv=test(SENDER_TEST, "test_reports_that_wait_for_redis_are_bounded_and_the_rest_is_counted"),
    ),
    Mutation(
        guard="webhooks: no redirects",
        file=POSTS,
        old="allow_redirects=False",
        new="allow_redirects=True",
        argv=test(POSTS_TEST, "test_any_other_status_is_a_failure_and_no_redirect_is_followed"),
    ),
    Mutation(
        guard="webhooks: no proxy of the environment",
        file=POSTS,
        old="trust_env=False",
        new="trust_env=True",
        argv=test(POSTS_TEST, "test_no_proxy_of_the_environment_gets_the_events"),
    ),
    Mutation(
        guard="webhooks: only an authentic server",
        file="gateway/config/pusher.py",
        old='            parse_backend_url(values["webhook_url"], "it receives what clients do")\n',
        new="            pass\n",
        argv=test("tests/unit/config/test_pusher_webhooks.py", "test_what_is_wrong_is_reported"),
    ),
    Mutation(
        guard="webhooks: requests are signed",
        file="gateway/http/protocols/pusher/webhooks.py",
        old="sign(app, body.decode())",
        new='sign(app, "")',
        argv=test("tests/unit/http/protocols/pusher/test_webhooks.py", "test_request_has_the_events"),
    ),
    Mutation(
        guard="webhooks: a member whose connection ends while it enters another roster is gone",
        file="gateway/presence/ownership.py",
        old="            if (owned := self._owned.pop(connection.serial, None)) is not None:\n"
        "                self._gone(owned.members)\n",
        new="            self._owned.pop(connection.serial, None)\n",
        argv=test("tests/unit/presence/test_on_member.py", "test_member_whose_connection_ends_while_it_enters_another"),
    ),
    Mutation(
        guard="webhooks: a member whose connection has ended is gone",
        file="gateway/presence/ownership.py",
        old="        if (owned := self._owned.pop(connection.serial, None)) is not None:\n            self._gone(owned.members)\n"
        "            self._schedule_release",
        new="        if self._owned.pop(connection.serial, None) is not None:\n            self._schedule_release",
        argv=test("tests/unit/presence/test_on_member.py", "test_member_whose_connection_ends_is_reported"),
    ),
)
