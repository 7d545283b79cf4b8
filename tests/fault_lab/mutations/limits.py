"""Guards of the limits over all nodes."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["LIMITS_MUTATIONS"]

_CONTRACT = "tests/contract/test_limits.py"
_DOOR = "tests/unit/http/websocket/test_cluster_limits.py"
_SCRIPT = "gateway/redis/limits/lua/count.lua"
_BUCKET = "gateway/redis/limits/bucket.py"
_COUNTS = "gateway/presence/cluster_counts.py"

LIMITS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="units of other nodes",
        file=_SCRIPT,
        old="      room = room - tonumber(",
        new="      room = room - 0 * tonumber(",
        argv=test(_CONTRACT, "test_nodes_together_never_take_more_than_the_maximum"),
    ),
    Mutation(
        guard="units of a dead node",
        file=_SCRIPT,
        old="redis.call('PEXPIRE', KEYS[3], ARGV[2])\n",
        new="redis.call('PERSIST', KEYS[3])\n",
        argv=test(_CONTRACT, "test_the_units_of_a_dead_node_become_free"),
    ),
    Mutation(
        guard="renewal of units",
        file=_BUCKET,
        old="            while self._is_due or self._changed:\n",
        new="            while self._changed:\n",
        argv=test(_CONTRACT, "test_units_are_renewed"),
    ),
    Mutation(
        guard="units that expired",
        file=_SCRIPT,
        old="elseif before ~= ARGV[5] then\n",
        new="elseif false then\n",
        argv=test(_CONTRACT, "test_what_other_nodes_took_meanwhile_is_lost"),
    ),
    Mutation(
        guard="a wait after a loss of data",
        file=_SCRIPT,
        old="    if settling_ms > 0 then\n",
        new="    if false then\n",
        argv=test(_CONTRACT, "test_after_a_loss_of_data_the_same_units_count"),
    ),
    Mutation(
        guard="a late call for units",
        file=_SCRIPT,
        old="  if before and tonumber(before) >= tonumber(ARGV[4]) then\n",
        new="  if false then\n",
        argv=test(_CONTRACT, "test_a_call_that_arrives_late_changes_nothing"),
    ),
    Mutation(
        guard="nodes that the caller does not know",
        file=_SCRIPT,
        old="if not is_known then\n",
        new="if false then\n",
        argv=test(_CONTRACT, "test_nodes_together_never_take_more_than_the_maximum"),
    ),
    Mutation(
        guard="a refused take",
        file=_BUCKET,
        old="        if count.wanted < granted:  # a cancelled take, or one that was granted in part\n",
        new="        if False:\n",
        argv=test(_CONTRACT, "test_a_refused_take_leaves_nothing_behind"),
    ),
    Mutation(
        guard="lost units once",
        file=_BUCKET,
        old="        lost = count.held - granted - count.ending\n",
        new="        lost = 0\n",
        argv=test(_CONTRACT, "test_what_other_nodes_took_meanwhile_is_lost"),
    ),
    Mutation(
        guard="the newest connections",
        file=_COUNTS,
        old="        for connection, own in reversed(list(self._units.items())):\n",
        new="        for connection, own in list(self._units.items()):\n",
        argv=test(_DOOR, "test_the_newest_connections_are_closed"),
    ),
    Mutation(
        guard="a login by a message counts",
        file="gateway/auth/authenticator.py",
        old="            await self.before_identity(connection, session.who.identity)\n",
        new="",
        argv=test(_DOOR, "test_a_login_by_a_message_counts"),
    ),
    Mutation(
        guard="units of an ended connection",
        file="gateway/http/websocket/protocol.py",
        old="        self._endpoint.node.counts_in_cluster.forget(self._connection)\n",
        new="",
        argv=test(_DOOR, "test_an_identity_is_limited_over_both_nodes"),
    ),
    Mutation(
        guard="units of a SockJS session",
        file="gateway/http/sockjs/session_store.py",
        old="        node.counts_in_cluster.bind(session.connection, units)\n",
        new="",
        argv=test(_DOOR, "test_sockjs_sessions_count"),
    ),
    Mutation(
        guard="units of a refused client",
        file=_COUNTS,
        old="        except BaseException:\n            self.leave(taken)\n",
        new="        except BaseException:\n",
        argv=test(_DOOR, "test_a_refused_identity_does_not_use_up_its_address"),
    ),
)
