"""Guards of publications that one call of a script publishes."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["BATCH_MUTATIONS"]

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
        old="        if len(found) != len(self.entries):\n",
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
        old="  offset, previous, mixed = offset + 1, new, mix(mixed)\n",
        new="  offset, previous = offset + 1, new\n",
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
        guard="batches: of which one is left",
        file=BATCH,
        old='f"{epoch}:{offset}:{found[-1]}"',
        new='f"{epoch}:{offset}:{answer}"',
        argv=test(UNIT, "test_a_batch_of_which_one_is_left_gets_its_position"),
    ),
)
