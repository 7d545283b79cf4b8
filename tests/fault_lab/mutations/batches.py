"""Guards of publications that one call of a script publishes."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["BATCH_MUTATIONS"]

PUBLISH = "gateway/redis/history/lua/publish.lua"
FUNCTION = "gateway/redis/history/lua/library/snorky_publish.lua"
SEVERAL = "tests/contract/test_functions_several.py"
CALLS = "clients/python/snorky/client/redis/calls.py"
CLIENT = "clients/python/tests/test_client_publisher_calls.py"
APPENDER = "gateway/redis/history/appender.py"
BATCH = "gateway/redis/history/batch.py"
CONTRACT = "tests/contract/test_history_batches.py"
UNIT = "tests/unit/redis/history/test_appender.py"

BATCH_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="batches: order of publications with keys of their callers",
        file=APPENDER,
        old="        if once is not None:\n            self._end_batch(key)\n",
        new="        if once is not None:\n",
        argv=test(CONTRACT, "test_a_batch_keeps_the_order_of_all_calls_of_its_channel and redis"),
    ),
    Mutation(
        guard="batches: one history for all",  # else the bounds of the first one hold for all
        file=BATCH,
        old="return has_room and history == self.history",
        new="return has_room",
        argv=test(CONTRACT, "test_each_publication_of_a_turn_has_the_history_that_it_was_given and redis"),
    ),
    Mutation(
        guard="batches: bound",  # Redis executes nothing else meanwhile
        file=BATCH,
        old="len(self.entries) < BATCH_MAX and self.size + entry.size <= BATCH_MAX_BYTES",
        new="True",
        argv=test(CONTRACT, "test_large_batches_are_divided and redis"),
    ),
    Mutation(
        guard="batches: cancelled publications",
        file=BATCH,
        old="for entry in self.entries if not entry.future.done()]",
        new="for entry in self.entries]",
        argv=test(CONTRACT, "test_cancelled_publications_are_not_sent and redis"),
    ),
    Mutation(
        guard="batches: cancelled publications without a connection",
        file=APPENDER,
        old="            self._drop_cancelled()\n",
        new="            pass\n",
        argv=test(UNIT, "test_what_is_cancelled_while_there_is_no_connection_is_not_sent"),
    ),
    Mutation(
        guard="batches: repeated unchanged",  # the positions of the first execution would be given to others
        file=APPENDER,
        old="if place < self._repeated - len(self._written) or not isinstance(future, Batch):",
        new="if not isinstance(future, Batch):",
        argv=test(CONTRACT, "test_a_batch_whose_reply_is_lost_is_published_once and redis"),
    ),
    Mutation(
        guard="batches: a position for each publication",
        file=BATCH,
        old="        if len(heads) != len(self.entries) or last.tag[:-8] != heads[-1]:\n",
        new="        if False:\n",
        argv=test(UNIT, "test_an_answer_that_is_not_of_the_batch_is_no_position_of_it"),
    ),
    Mutation(
        guard="batches: every publication counts",
        file=APPENDER,
        old="return super()._pending_count() + self._batched",
        new="return super()._pending_count()",
        argv=test(UNIT, "test_publications_of_batches_count_towards_the_limits"),
    ),
    Mutation(
        guard="batches: tags of later publications",  # equal tags would hide that a history has forked
        file="gateway/redis/history/lua/publish.lua",
        old="sub(entropy, 17 + 8 * number, 24 + 8 * number) .. tail",
        new="sub(entropy, 25, 32) .. tail",
        argv=test(CONTRACT, "test_one_call_publishes_what_one_turn_of_the_loop_publishes_to_a_channel and redis"),
    ),
    Mutation(
        guard="batches: failures in order",  # in a Cluster publications are sent again in the order of their failures
        file=BATCH,
        old="""        super().set_exception(error)
        if isinstance(error, BrokerUnavailable):
            for entry in self.entries:
                fail(entry.future, copy.copy(error))
""",
        new="""        super().set_exception(error)
        self.add_done_callback(lambda _: [fail(entry.future, copy.copy(error)) for entry in self.entries])
""",
        argv=test(UNIT, "test_publications_fail_in_the_order_of_their_calls"),
    ),
    Mutation(
        guard="batches: of which one is left",  # its call has other digits than the one that was built before
        file=APPENDER,
        old="batch.heads = secrets",
        new="batch.heads = batch.heads or secrets",
        argv=test(UNIT, "test_a_batch_of_which_one_is_left_gets_its_position"),
    ),
    Mutation(
        guard="several payloads: keys",
        file=PUBLISH,
        old="if KEYS[4] then\n",
        new="if false then\n",
        argv=test(SEVERAL, "test_each_payload_has_a_key_of_its_own and redis"),
    ),
    Mutation(
        guard="several payloads: keys without a history",
        file=PUBLISH,
        old="  for at = 3, #KEYS do\n",
        new="  for at = 3, 3 do\n",
        argv=test(SEVERAL, "test_without_a_history_each_is_delivered_once_per_key and redis"),
    ),
    Mutation(
        guard="several payloads: a key that a call has twice",
        file=FUNCTION,
        old="    if once == '' or not firsts[once] then\n",
        new="    if true then\n",
        argv=test(SEVERAL, "test_a_key_that_a_call_has_twice_publishes_once and redis"),
    ),
    Mutation(
        guard="several payloads: number",  # Redis executes nothing else meanwhile
        file=FUNCTION,
        old=" or count > PUBLICATIONS_MAX then",
        new=" then",
        argv=test(SEVERAL, "test_a_call_has_at_most_64_payloads and redis"),
    ),
    Mutation(
        guard="several payloads: bytes",
        file=FUNCTION,
        old="    bytes = bytes + #payload\n",
        new="    bytes = #payload\n",
        argv=test(SEVERAL, "test_a_call_has_at_most_64_payloads and redis"),
    ),
    Mutation(
        guard="several payloads: size of the history",
        file=PUBLISH,
        old="size == '0' or number < count then",
        new="true then",
        argv=test(SEVERAL, "test_a_call_keeps_as_many_as_the_rule_says and redis"),
    ),
    Mutation(
        guard="calls: number",  # the function refuses more
        file=CALLS,
        old="len(self.publications) < CALL_MAX and",
        new="",
        argv=test(CLIENT, "test_calls_are_bounded_in_number_and_bytes"),
    ),
    Mutation(
        guard="calls: bytes",
        file=CALLS,
        old=" and self.size + len(publication.payload) <= CALL_MAX_BYTES",
        new="",
        argv=test(CLIENT, "test_calls_are_bounded_in_number_and_bytes"),
    ),
    Mutation(
        guard="calls: bytes in flight",
        file=CALLS,
        old=" or size + call.size > PIPELINE_MAX_BYTES)",
        new=")",
        argv=test(CLIENT, "test_what_is_in_flight_is_bounded_in_number_and_bytes"),
    ),
    Mutation(
        guard="calls: function of an earlier version",
        file=CALLS,
        old="            refusal = refusal.of_several()\n",
        new="            pass\n",
        argv=test(CLIENT, "test_function_of_an_earlier_version_gets_each_message_by_a_call_of_its_own"),
    ),
    Mutation(
        guard="calls: function of an earlier version, before the deadline",
        file="clients/python/snorky/client/redis/batch.py",
        old="return 0.0 if now_s + ATTEMPT_MIN_S < self.deadline_s else None  # at most",
        new="return 0.0  # at most",
        argv=test(CLIENT, "test_earlier_function_is_not_asked_again_after_the_deadline"),
    ),
    Mutation(
        guard="calls: plain PUBLISH has one payload",
        file="clients/python/snorky/client/publication.py",
        old="return self.is_plain or self.is_single",
        new="return self.is_single",
        argv=test(CLIENT, "test_plain_publish_has_no_calls_with_several"),
    ),
)
