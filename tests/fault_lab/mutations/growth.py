"""Guards of costs that must not grow with the numbers of members, channels and subscribers."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["GROWTH_MUTATIONS"]

_COST = "tests/cluster/test_directory_cost.py"

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
        file="gateway/http/serving/site.py",
        old="for same in (bound, *(bound.dup() for _ in range(1, ACCEPTS))):",
        new="for same in (bound,):",
        argv=test("tests/unit/http/serving/test_site.py", "few_iterations"),
    ),
    Mutation(
        guard="connections that wait when a site stops are accepted",
        file="gateway/http/serving/site.py",
        old="        await self._accept_waiting()\n",
        new="        await asyncio.sleep(0)\n",
        argv=test("tests/unit/http/serving/test_site.py", "wait_to_be_accepted"),
    ),
    Mutation(
        guard="an ended connection needs no garbage collector",
        file="gateway/node.py",
        old="        self.cluster_limits.quotas.forget(connection)\n        connection.detach()\n",
        new="        self.cluster_limits.quotas.forget(connection)\n",
        argv=test("tests/unit/http/websocket/test_freed_memory.py", "test_a_client"),
    ),
)
