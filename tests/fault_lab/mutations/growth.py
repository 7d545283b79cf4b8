"""Guards of costs that must not grow with the numbers of members, channels and subscribers."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["GROWTH_MUTATIONS"]

_COST = "tests/cluster/test_directory_cost.py"
_ACCEPTOR = "tests/unit/http/serving/test_acceptor.py"
_DOOR = "tests/unit/http/websocket/test_front_door.py"
_RECOVERY = "tests/unit/delivery/test_shared_recovery.py"

GROWTH_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="a subscription reads no list",
        file="services/pubsub/presence.py",
        old=", lists_members=False",
        new="",
        argv=test(_COST, "read_no_list"),
    ),
    Mutation(
        guard="version of an entry without the list",
        file="gateway/redis/directory/lua/enter.lua",
        old="local version = redis.call('HGET', KEYS[2], 'v')\n",
        new="local version = false\n",
        argv=test("tests/contract/test_directory.py", "enters_without_the_list and redis"),
    ),
    Mutation(
        guard="steps of decoding a roster",
        file="gateway/redis/directory/rosters.py",
        old="            if start:\n                await asyncio.sleep(0)\n",
        new="",
        argv=test("tests/unit/redis/directory/test_rosters.py", "many_steps_of_the_loop"),
    ),
    Mutation(
        guard="steps of sorting a roster",
        file="gateway/redis/directory/rosters.py",
        old="            if not len(members) % SLICE:\n                await asyncio.sleep(0)\n",
        new="",
        argv=test("tests/unit/redis/directory/test_rosters.py", "many_steps_of_the_loop"),
    ),
    Mutation(
        guard="recent names of a channel that is given up",
        file="gateway/redis/pubsub/subscriber.py",
        old="            del self._by_key[channel.key]\n            self._recent.clear()\n",
        new="            del self._by_key[channel.key]\n",
        argv=test("tests/unit/redis/pubsub/test_subscriber.py", "heard_when_it_is_subscribed_again"),
    ),
    Mutation(
        guard="totals of a node's state, without all metrics",
        file="gateway/runtime/node.py",
        old="    samples = (sample for metric in counter.collect() for sample in metric.samples)\n",
        new="    from prometheus_client import CollectorRegistry\n\n    CollectorRegistry().collect()\n    samples = (sample for metric in counter.collect() for sample in metric.samples)\n",
        argv=test("tests/unit/runtime/test_node_state.py", "without_collecting"),
    ),
    Mutation(
        guard="a single group without a dictionary",
        file="gateway/delivery/groups.py",
        old="        if self._dialect is None:\n            self._dialect, self._group = dialect, {}\n",
        new="",
        argv=test("tests/unit/delivery/test_groups.py", "single_group"),
    ),
    Mutation(
        guard="a busy loop accepts several connections in each iteration",
        file="gateway/http/serving/acceptor.py",
        old="HANDLES_MAX: Final = 16",
        new="HANDLES_MAX: Final = 1",
        argv=test(_ACCEPTOR, "few_iterations"),
    ),
    Mutation(
        guard="connections that wait when a site stops are accepted",
        file="gateway/http/serving/acceptor.py",
        old="        while quiet < QUIET_ITERATIONS and",
        new="        while False and",
        argv=test(_ACCEPTOR, "wait_to_be_accepted"),
    ),
    Mutation(
        guard="connections are read as fast as their requests come",
        file="gateway/http/serving/acceptor.py",
        old="AHEAD: Final = 128",
        new="AHEAD: Final = 1 << 20",
        argv=test(_ACCEPTOR, "as_fast_as_their_requests"),
    ),
    Mutation(
        guard="clients that would wait long learn when to come",
        file="gateway/http/serving/acceptor.py",
        old="wait_s if wait_s > WAIT_MAX_S else 0.0,",
        new="0.0,",
        argv=test(_ACCEPTOR, "learn_when_to_come"),
    ),
    Mutation(
        guard="refusals end without another figure",
        file="gateway/http/serving/accept_gate.py",
        old="        if self.wait_s and asyncio.get_running_loop().time() < self._refuses_until_s:\n",
        new="        if self.wait_s:\n",
        argv=test("tests/unit/http/serving/test_accept_gate.py", "no_longer_than_the_figure"),
    ),
    Mutation(
        guard="a standstill is no rate",
        file="gateway/http/serving/acceptor.py",
        old="if measure is None or now_s - measure.last_s > STANDSTILL_S:",
        new="if measure is None:",
        argv=test(_ACCEPTOR, "a_standstill"),
    ),
    Mutation(
        guard="work begins in portions",
        file="gateway/connection/pace.py",
        old="        if not self.has_room:\n",
        new="        if False:\n",
        argv=test("tests/unit/connection/test_pace.py", "in_portions"),
    ),
    Mutation(
        guard="what waits comes before what is new",
        file="gateway/connection/pace.py",
        old="        return self._left > 0 and not self._line\n",
        new="        return self._left > 0\n",
        argv=test("tests/unit/connection/test_pace.py", "before_what_is_new"),
    ),
    Mutation(
        guard="handshakes in portions",
        file="gateway/http/websocket/front_door.py",
        old="        self._pace.run(lambda: self._decide(arrival))\n",
        new="        self._decide(arrival)\n",
        argv=test(_DOOR, "handshakes_in_portions"),
    ),
    Mutation(
        guard="messages that are awaited begin in portions",
        file="gateway/sdk/registry.py",
        old="        elif not self._pace.has_room:\n",
        new="        elif False:\n",
        argv=test("tests/unit/connection/test_inbox.py", "in_portions"),
    ),
    Mutation(
        guard="clients with too much to recover share the next read",
        file="gateway/delivery/gap_repair.py",
        old="            if followed.replays.get(wanted) is replay:  # else",
        new="            if followed.replays.get(wanted):  # else",
        argv=test(_RECOVERY, "share_the_next_read"),
    ),
    Mutation(
        guard="bytes that are kept for clients that recover",
        file="gateway/delivery/channel_order.py",
        old=" or self._recent_bytes > RECENT_MAX_BYTES:",
        new=":",
        argv=test(_RECOVERY, "kept_for_clients"),
    ),
    Mutation(
        guard="reads from before an interruption are not shared",
        file="gateway/delivery/gap_repair.py",
        old="            followed.replays.clear()",
        new="            pass",
        argv=test(_RECOVERY, "after_an_interruption_no"),
    ),
    Mutation(
        guard="clients that recover continue in portions",
        file="gateway/delivery/gap_repair.py",
        old="                await self.pace.turn()  # all",
        new="                pass  # all",
        argv=test(_RECOVERY, "continue_in_portions"),
    ),
    Mutation(
        guard="clients that recover share a read that has ended",
        file="gateway/delivery/gap_repair.py",
        old="                        await asyncio.sleep(KEEP_S)\n",
        new="                        pass\n",
        argv=test(_RECOVERY, "come_after_a_read"),
    ),
    Mutation(
        guard="bytes of reads that are kept",
        file="gateway/delivery/gap_repair.py",
        old="                    if self._kept_bytes <= KEPT_MAX_BYTES:\n",
        new="                    if True:\n",
        argv=test(_RECOVERY, "bound_in_bytes"),
    ),
    Mutation(
        guard="publications of one client with a read that was kept",
        file="gateway/delivery/gap_repair.py",
        old="    return len(publications) > REPLAY_MAX or ",
        new="    return False and ",
        argv=test(_RECOVERY, "more_than_the_limit"),
    ),
    Mutation(
        guard="an ended connection needs no garbage collector",
        file="gateway/node.py",
        old="        self.cluster_limits.quotas.forget(connection)\n        connection.detach()\n",
        new="        self.cluster_limits.quotas.forget(connection)\n",
        argv=test("tests/unit/http/websocket/test_freed_memory.py", "test_a_client"),
    ),
)
