"""Guards of the limits over all nodes."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["LIMITS_MUTATIONS"]

_CONTRACT = "tests/contract/test_limits.py"
_DOOR = "tests/unit/http/websocket/test_cluster_limits.py"
_CLIENTS = "tests/unit/services/test_cluster_limits.py"
_QUOTAS = "tests/unit/connection/test_cluster_quotas.py"
_RATES = "tests/unit/presence/test_rate_exchange.py"
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
        argv=test(_CONTRACT, "test_a_renewal_writes_expired_units_again"),
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
        old="        for connection in reversed(list(self._units | self._channels)):\n",
        new="        for connection in list(self._units | self._channels):\n",
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
        old="        self._endpoint.node.cluster_limits.counts.forget(self._connection)\n",
        new="",
        argv=test(_DOOR, "test_an_identity_is_limited_over_both_nodes"),
    ),
    Mutation(
        guard="units of a SockJS session",
        file="gateway/http/sockjs/session_store.py",
        old="        node.cluster_limits.counts.bind(session.connection, entry.units)\n",
        new="",
        argv=test(_DOOR, "test_sockjs_sessions_count"),
    ),
    Mutation(
        guard="units of a refused client",
        file=_COUNTS,
        old="                    taken.append((limit, name))\n        except BaseException:\n            self.leave(taken)\n",
        new="                    taken.append((limit, name))\n        except BaseException:\n",
        argv=test(_DOOR, "test_a_refused_identity_does_not_use_up_its_address"),
    ),
    Mutation(
        guard="units of an ended subscription",
        file="gateway/delivery/hub.py",
        old="        self.on_removed(connection, key)\n",
        new="",
        argv=test(_CLIENTS, "test_subscribers_of_a_channel_are_limited_over_all_nodes"),
    ),
    Mutation(
        guard="units of a failed subscription",
        file="gateway/sdk/service_channels.py",
        old="                self._counts.leave_channel(connection, key)\n",
        new="                pass\n",
        argv=test(_CLIENTS, "test_a_subscription_that_a_service_prevents_counts_no_more"),
    ),
    Mutation(
        guard="units of a subscription that begins again",
        file="gateway/sdk/service_channels.py",
        old="        with self._counts.kept(connection, key):\n",
        new="        if True:\n",
        argv=test(_CLIENTS, "test_a_subscription_that_begins_again_keeps_its_place"),
    ),
    Mutation(
        guard="channels of an identity",
        file=_COUNTS,
        old="            wanted.append((CHANNELS, connection.identity, self._maxima[CHANNELS]))\n",
        new="            pass\n",
        argv=test(_CLIENTS, "test_channels_of_an_identity_are_limited_over_all_nodes"),
    ),
    Mutation(
        guard="a part of a rate for each node",
        file="gateway/presence/rate_exchange.py",
        old="            bucket.allow(bucket.demand_per_s / (bucket.demand_per_s + others[bucket.key]))\n",
        new="            bucket.allow(1.0)\n",
        argv=test(_RATES, "test_a_constant_demand_above_the_limit_gets_the_limit"),
    ),
    Mutation(
        guard="an equal part at the beginning",
        file="gateway/connection/cluster_rates.py",
        old="        self.allow(1 / rates.nodes)\n",
        new="        self.allow(1.0)\n",
        argv=test(_RATES, "test_a_constant_demand_above_the_limit_gets_the_limit"),
    ),
    Mutation(
        guard="an equal part without Redis",
        file="gateway/presence/rate_exchange.py",
        old="            for bucket in reported:\n                bucket.allow(equal)\n            return\n",
        new="            return\n",
        argv=test(_RATES, "test_without_redis_a_name_returns_to_an_equal_part"),
    ),
    Mutation(
        guard="reported names are bounded",
        file="gateway/presence/rate_exchange.py",
        old="        reported = [bucket for _, bucket in asked[:NAMES_MAX]]\n",
        new="        reported = [bucket for _, bucket in asked]\n",
        argv=test(_RATES, "test_many_names_are_not_all_reported"),
    ),
    Mutation(
        guard="demands expire",
        file="gateway/redis/limits/lua/demand.lua",
        old="redis.call('PEXPIRE', KEYS[1], ARGV[1])\n",
        new="",
        argv=test(_CONTRACT, "test_demands_expire"),
    ),
    Mutation(
        guard="a report replaces the last one",
        file="gateway/redis/limits/lua/demand.lua",
        old="redis.call('DEL', KEYS[1])\n",
        new="",
        argv=test(_CONTRACT, "test_nodes_learn_the_demands_of_the_others"),
    ),
    Mutation(
        guard="publications of an identity",
        file="gateway/connection/publish_limits.py",
        old="            bucket.credit -= 1.0\n",
        new="            pass\n",
        argv=test(_CLIENTS, "test_publications_of_an_identity_are_limited_over_all_nodes"),
    ),
    Mutation(
        guard="publications on a channel",
        file="gateway/connection/publish_limits.py",
        old="            other.credit -= 1.0\n",
        new="            pass\n",
        argv=test(_CLIENTS, "test_publications_on_a_channel_are_limited_over_all_nodes"),
    ),
    Mutation(
        guard="stored bytes over all nodes",
        file="gateway/connection/cluster_quotas.py",
        old="        taken.room -= size\n",
        new="",
        argv=test(_QUOTAS, "test_all_nodes_together_store_no_more_than_the_quota"),
    ),
    Mutation(
        guard="spent bytes count for 300 s",
        file="gateway/connection/cluster_quotas.py",
        old="        until_s = monotonic() - STORED_S - SLOT_S\n",
        new="        until_s = monotonic() - SLOT_S\n",
        argv=test(_QUOTAS, "test_spent_bytes_are_free_after_300_s"),
    ),
    Mutation(
        guard="stored bytes of a node that was cut off",
        file="gateway/connection/cluster_quotas.py",
        old="        if not self._reserve.is_current(*name):\n",
        new="        if False:\n",
        argv=test(_QUOTAS, "test_a_node_that_was_cut_off_stores_nothing"),
    ),
    Mutation(
        guard="stored bytes that others took",
        file="gateway/connection/cluster_quotas.py",
        old="            taken.lose(units)\n",
        new="            pass\n",
        argv=test(_QUOTAS, "test_what_other_nodes_took_meanwhile_cannot_be_spent"),
    ),
    Mutation(
        guard="units that may have expired",
        file="gateway/redis/limits/bucket.py",
        old="        return asyncio.get_running_loop().time() < self._current_until_s\n",
        new="        return self._current_until_s > 0\n",
        argv=test(_CONTRACT, "test_units_are_not_current_while_they_cannot_be_renewed"),
    ),
    Mutation(
        guard="rights that change while a subscription is counted",
        file="gateway/presence/cluster_counts.py",
        old="            if entering[1] != rechecks:\n",
        new="            if False:\n",
        argv=test(_CLIENTS, "test_rights_that_change_while_a_subscription_is_being_counted_apply"),
    ),
    Mutation(
        guard="units that are written again in several calls",
        file=_SCRIPT,
        old="  if ARGV[5] == '' then\n",
        new="  if true then\n",
        argv=test(_CONTRACT, "test_no_other_node_takes_units_that_are_written_again_in_several_calls and valkey"),
    ),
    Mutation(
        guard="units that a node does not count any more",
        file=_BUCKET,
        old="if name and name not in self._counts}",
        new="if not name}",
        argv=test(_CONTRACT, "test_no_other_node_takes_units_that_are_written_again_in_several_calls and valkey"),
    ),
    Mutation(
        guard="the size of messages on a channel",
        file="gateway/connection/publish_limits.py",
        old="        if rule.message_max_bytes and json_size(message) > rule.message_max_bytes:\n",
        new="        if False:\n",
        argv=test(_CLIENTS, "test_the_size_of_messages_on_a_channel_is_limited"),
    ),
)
