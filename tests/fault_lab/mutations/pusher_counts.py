"""Guards of the numbers of subscribers that Pusher's clients are told: complete, merged, bounded, and for nobody else."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PUSHER_COUNTS_MUTATIONS"]

NUMBERS = "gateway/redis/lua/webhook_numbers.lua"
RELEASE = "gateway/redis/lua/webhook_release.lua"
CLIENT = "gateway/http/protocols/pusher/client.py"
LOCAL = "gateway/http/protocols/pusher/counts/local_counts.py"
SENDER = "gateway/http/protocols/pusher/webhook_sender.py"
LOG_TEST = "tests/contract/test_webhooks.py"
UNIT = "tests/unit/http/protocols/pusher/test_counts.py"
HERE = "tests/cluster/test_pusher_counts.py"

PUSHER_COUNTS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="counts: a number replaces the one that the node reported before",
        file=NUMBERS,
        old="local before = tonumber(redis.call('ZSCORE', held, fact) or '0')",
        new="local before = 0",
        argv=test(LOG_TEST, "test_repeated_number_is_counted_once"),
    ),
    Mutation(
        guard="counts: a fenced node reports no number",
        file=NUMBERS,
        old="if redis.call('ZSCORE', fenced, owner) or redis.call('HGET', state, 'v ' .. owner) ~= ARGV[2] then",
        new="if false then",
        argv=test(LOG_TEST, "test_numbers_of_a_dead_node_leave_the_sum"),
    ),
    Mutation(
        guard="counts: numbers of a channel are merged",
        file=NUMBERS,
        old="text(math.max(now, math.min(told_at, now) + pause))",
        new="text(now)",
        argv=test(LOG_TEST, "test_numbers_are_merged_and_the_last_one_comes"),
    ),
    Mutation(
        guard="counts: numbers of a large channel come less often",
        file=NUMBERS,
        old="(number > many or before > many) and many_every or every",
        new="every",
        argv=test(LOG_TEST, "test_numbers_are_merged_and_the_last_one_comes"),
    ),
    Mutation(
        guard="counts: a channel without subscribers is forgotten",
        file=NUMBERS,
        old="        redis.call('ZADD', due, text(now + pause_of(number, last)), channel)\n",
        new="",
        argv=test(LOG_TEST, "test_channel_without_subscribers_leaves_nothing_in_redis"),
    ),
    Mutation(
        guard="counts: a new client is told a number that is the same",
        file=NUMBERS,
        old="if number == 0 and last == 0 then",
        new="if number == last then",
        argv=test(LOG_TEST, "test_number_that_did_not_change_is_told_to_clients_that_are_new"),
    ),
    Mutation(
        guard="counts: the same number is no event",
        file=NUMBERS,
        old="if number ~= last and has_events then",
        new="if has_events then",
        argv=test(LOG_TEST, "test_number_that_did_not_change_is_told_to_clients_that_are_new"),
    ),
    Mutation(
        guard="counts: no number before all nodes have reported",
        file=NUMBERS,
        old="if waited >= after or waited < 0 then",
        new="if true then",
        argv=test(LOG_TEST, "test_after_a_loss_numbers_are_told_only_when_all_nodes"),
    ),
    Mutation(
        guard="counts: numbers come in pages without a gap",
        file=NUMBERS,
        old="  answer[4] = tonumber(found[#found])\n",
        new="",
        argv=test(LOG_TEST, "test_many_numbers_come_in_pages_and_none_is_left_out"),
    ),
    Mutation(
        guard="counts: they cannot fill the queue",
        file=NUMBERS,
        old="if events + 1 > events_max * 0.5 or bytes",
        new="if events + 1 > events_max or bytes",
        argv=test(LOG_TEST, "test_numbers_get_half_of_the_queue"),
    ),
    Mutation(
        guard="counts: subscribers of a dead node leave the sum",
        file=RELEASE,
        old="-math.max(number, 1)",
        new="-1",
        argv=test(LOG_TEST, "test_numbers_of_a_dead_node_leave_the_sum"),
    ),
    Mutation(
        guard="counts: the sum without a dead node is told",
        file=RELEASE,
        old="    redis.call('ZADD', KEYS[5], 'NX', told, string.sub(fact, 3))\n",
        new="",
        argv=test(HERE, "test_subscribers_of_a_node_that_is_killed_leave_the_number"),
    ),
    Mutation(
        guard="counts: numbers that ran before their exchange are sent again",
        file="gateway/redis/webhooks.py",
        old="        if has_numbers and not answers[0]:\n",
        new="        if False:\n",
        argv=test("tests/unit/redis/test_webhooks.py", "test_numbers_that_ran_before_their_exchange"),
    ),
    Mutation(
        guard="counts: channels are bounded",
        file=LOCAL,
        old="if len(self._clients) >= self._channels_max:",
        new="if False:",
        argv=test(UNIT, "test_channels_are_bounded"),
    ),
    Mutation(
        guard="counts: what Redis need not know is not stored",
        file=LOCAL,
        old="            self._changed.pop(channel, None)  #",
        new="            self._changed.setdefault(channel)  #",
        argv=test(UNIT, "test_channel_that_redis_need_not_know"),
    ),
    Mutation(
        guard="counts: presence channels have none",
        file=LOCAL,
        old="return not kind.is_presence and ",
        new="return ",
        argv=test(HERE, "test_presence_channels_and_channels_of_users_have_no_number"),
    ),
    Mutation(
        guard="counts: channels of users have none",
        file=LOCAL,
        old="kind.user is None and ",
        new="",
        argv=test(UNIT, "test_only_channels_that_are_neither_of_members_nor_of_a_user"),
    ),
    Mutation(
        guard="counts: many clients are told in chunks",
        file="gateway/http/protocols/pusher/counts/count_events.py",
        old="if written % CHUNK == 0:",
        new="if False:",
        argv=test(UNIT, "test_many_clients_are_told_in_chunks"),
    ),
    Mutation(
        guard="counts: an app without the option counts nobody",
        file=CLIENT,
        old="if not self._app.subscription_counts or webhooks is None",
        new="if webhooks is None",
        argv=test(HERE, "test_node_without_the_option_sends_no_numbers"),
    ),
    Mutation(
        guard="counts: a client whose connection has ended does not count",
        file=CLIENT,
        old="        for channel in tuple(self._counted):\n            self._uncount(channel)\n",
        new="",
        argv=test(HERE, "test_page_that_reloads_is_told_the_number"),
    ),
    Mutation(
        guard="counts: a subscription that the server has ended does not count",
        file=CLIENT,
        old='            self._uncount(message["channel"])\n',
        new="",
        argv=test(HERE, "test_subscription_that_is_refused_or_ended_by_the_server"),
    ),
    Mutation(
        guard="counts: numbers are reported again after a fence",
        file=SENDER,
        old="            self._counts.renew(())\n            return True",
        new="            return True",
        argv=test(UNIT, "test_numbers_are_reported_again_after_a_fence"),
    ),
    Mutation(
        guard="counts: numbers are reported again after a loss",
        file=SENDER,
        old="        self._counts.renew(held)\n",
        new="",
        argv=test(HERE, "test_numbers_after_redis_has_lost_its_data"),
    ),
    Mutation(
        guard="counts: an exchange has a bounded number of them",
        file=SENDER,
        old="min(COUNTS_MAX, CHANGES_MAX - len(changes))",
        new="CHANGES_MAX",
        argv=test(UNIT, "test_exchange_is_bounded_and_facts_come_before_numbers"),
    ),
    Mutation(
        guard="counts: an app without a webhook sends no request",
        file=SENDER,
        old="found.waiting and self._log.is_sender and self.app.webhook_url",
        new="found.waiting and self._log.is_sender",
        argv=test(UNIT, "test_app_that_has_no_webhook_sends_no_request"),
    ),
)
