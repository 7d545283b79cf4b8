"""Guards of the control by the backend: orders, and the end of a subscription."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["CONTROL_MUTATIONS"]

_CONTRACT = "tests/contract/test_control.py"
_WAITS = "tests/contract/test_control_waits.py"
_UNIT = "tests/unit/sdk/test_control.py"
_ENDING = "tests/unit/sdk/test_end_subscription.py"
_SERVICE = "tests/unit/services/test_control.py"
_VIEWS = "tests/unit/services/test_control_views.py"

CONTROL_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="an order once",
        file="gateway/sdk/control.py",
        old="            if order.id not in self._known:\n",
        new="            if True:\n",
        argv=test(_UNIT, "test_an_order_that_is_reported_again_is_not_carried_out_again"),
    ),
    Mutation(
        guard="an order without criteria",
        file="gateway/sdk/control.py",
        old="            return named  # an order without criteria reaches no connection\n",
        new="            return named or tuple(self._connections())\n",
        argv=test(_UNIT, "test_all_criteria_must_match"),
    ),
    Mutation(
        guard="identity and channel",
        file="gateway/sdk/control.py",
        old="        return [each for each in named if key in each.channels]\n",
        new="        return named\n",
        argv=test(_UNIT, "test_all_criteria_must_match"),
    ),
    Mutation(
        guard="connection and identity",
        file="gateway/sdk/control.py",
        old="named.append([each for each in those if order.identity in (None, each.identity)])\n",
        new="named.append(those)\n",
        argv=test(_UNIT, "test_all_criteria_must_match"),
    ),
    Mutation(
        guard="codes of an order",
        file="gateway/sdk/control.py",
        old="code = CloseCode.RECONNECT if order.code == CloseCode.RECONNECT else CloseCode.DISCONNECTED",
        new="code = order.code",
        argv=test(_UNIT, "test_code_to_reconnect_is_passed_on_and_no_other_one"),
    ),
    Mutation(
        guard="clients that reconnect",
        file="gateway/sdk/control.py",
        old="            await asyncio.sleep(self._orders.spread_s)\n",
        new="            pass\n",
        argv=test(_UNIT, "test_client_that_shall_reconnect_is_closed_only_when_all_nodes"),
    ),
    Mutation(
        guard="missed orders",
        file="gateway/sdk/control.py",
        old='            connection.close(CloseCode.RECONNECT, "Come back")\n',
        new="            pass\n",
        argv=test(_UNIT, "test_a_node_that_may_have_missed_orders_closes_its_clients"),
    ),
    Mutation(
        guard="waiting control calls",
        file="gateway/sdk/control.py",
        old="        if self._awaited >= AWAITED_MAX:\n",
        new="        if False:\n",
        argv=test(_UNIT, "test_calls_that_wait_are_bounded"),
    ),
    Mutation(
        guard="known orders",
        file="gateway/sdk/control.py",
        old="        while len(self._known) > 2 * ORDERS_MAX:\n",
        new="        while False:\n",
        argv=test(_UNIT, "test_memory_of_known_orders_is_bounded"),
    ),
    Mutation(
        guard="orders after a loss",
        file="gateway/redis/control.py",
        old="entries[0].order_id == last.order_id:",
        new="True:",
        argv=test(_CONTRACT, "test_after_redis_lost_its_newest_orders_new_ones_are_reported"),
    ),
    Mutation(
        guard="announced orders",
        file="gateway/redis/lua/order.lua",
        old="redis.call('XADD', KEYS[3], 'MAXLEN', '1', '*', 'id', ARGV[1])\n",
        new="",
        argv=test(_WAITS, "test_an_order_in_a_list_that_began_again_reaches_a_node_that_waits"),
    ),
    Mutation(
        guard="orders without an announcement",
        file="gateway/redis/control.py",
        old='        after = b"%d-0" % (0 if self._last is None else self._last.number)\n',
        new='        after = b"9999-0"\n',
        argv=test(_WAITS, "test_an_order_without_an_announcement_reaches_a_node_that_waits"),
    ),
    Mutation(
        guard="orders whose announcement was lost",
        file="gateway/redis/control.py",
        old="        due_s = loop.time() + REPAIR_S\n",
        new="        due_s = loop.time() + 3600.0\n",
        argv=test(_WAITS, "test_an_order_whose_announcement_was_lost_is_read_later"),
    ),
    Mutation(
        guard="orders without the right to wait",
        file="gateway/redis/control.py",
        old="                await asyncio.sleep(self._interval_s)\n",
        new="                await asyncio.sleep(3600.0)\n",
        argv=test(_WAITS, "test_without_the_right_to_wait_a_node_reads_often"),
    ),
    Mutation(
        guard="removed orders",
        file="gateway/redis/control.py",
        old="            is_missed = bool(entries) and entries[0].number > next_number\n",
        new="",
        argv=test(_CONTRACT, "test_a_node_is_notified_if_orders_were_removed_before_it_read_them"),
    ),
    Mutation(
        guard="orders since the start",
        file="gateway/redis/control.py",
        old="        self._report([entry for entry in entries if entry.at_ms >= since_ms], on_orders)\n",
        new="",
        argv=test(_CONTRACT, "test_orders_given_while_a_node_could_not_read_yet_are_reported"),
    ),
    Mutation(
        guard="orders before the start",
        file="gateway/redis/control.py",
        old="        self._report([entry for entry in entries if entry.at_ms >= since_ms], on_orders)\n",
        new="        self._report(entries, on_orders)\n",
        argv=test(_CONTRACT, "test_a_new_node_is_not_told_of_orders_from_before_its_start"),
    ),
    Mutation(
        guard="orders of newer nodes",
        file="gateway/redis/control.py",
        old="            except msgspec.DecodeError as error:  # of a newer node, which counts this node as missing\n",
        new="            except ZeroDivisionError as error:\n",
        argv=test(_CONTRACT, "test_an_order_of_a_newer_node_is_passed_over"),
    ),
    Mutation(
        guard="missed by one of several",
        file="gateway/redis/multi/control.py",
        old="        if not any(",
        new="        if True or any(",
        argv=test(_CONTRACT, "test_orders_of_one_redis_that_another_one_reported_are_not_missed"),
    ),
    Mutation(
        guard="orders without one of several",
        file="gateway/redis/multi/control.py",
        old="        while pending and not any(task.exception() is None for task in ended):\n",
        new="        while pending:\n",
        argv=test(_CONTRACT, "test_one_of_several_redis_suffices"),
    ),
    Mutation(
        guard="number of orders",
        file="gateway/redis/lua/order.lua",
        old="  if last - first + 1 >= tonumber(ARGV[4]) then\n",
        new="  if false then\n",
        argv=test(_CONTRACT, "test_orders_are_refused_and_none_is_discarded_when_too_many_are_kept"),
    ),
    Mutation(
        guard="bytes of an order",
        file="gateway/contracts/control.py",
        old="    if len(data) > ORDER_MAX_BYTES:\n",
        new="    if False:\n",
        argv=test(_CONTRACT, "test_an_order_that_is_too_large_is_refused"),
    ),
    Mutation(
        guard="roster after the end",
        file="gateway/sdk/service.py",
        old="            self.rosters.leave_soon(connection, channel)\n",
        new="            pass\n",
        argv=test(_ENDING, "test_client_leaves_the_roster_and_others_are_notified"),
    ),
    Mutation(
        guard="end during a join",
        file="gateway/sdk/topics.py",
        old="        if not self.is_subscribed(connection, channel):  # `Service.end_subscription`",
        new="        if False:  # `Service.end_subscription`",
        argv=test(_ENDING, "test_room_whose_join_is_in_progress_is_left"),
    ),
    Mutation(
        guard="log of control calls",
        file="services/control_views.py",
        old="                self._audit(request, outcome, **facts, **results)\n",
        new="                pass\n",
        argv=test(_SERVICE, "test_call_without_redis_is_audited_too"),
    ),
    Mutation(
        guard="log of refused control calls",
        file="services/control_views.py",
        old="            self._audit(request, error.code)\n",
        new="            pass\n",
        argv=test(_SERVICE, "test_bad_parameters_are_refused_and_audited"),
    ),
    Mutation(
        guard="size of a page",
        file="gateway/sdk/control_views.py",
        old="for each in sorted(entries)[:limit]]",
        new="for each in sorted(entries)]",
        argv=test(_VIEWS, "test_connections_of_an_identity_are_listed_in_pages"),
    ),
    Mutation(
        guard="start of a page of connections",
        file="gateway/sdk/control_views.py",
        old=" and place_of(each.id) > place]",
        new=" and each.id > after]",
        argv=test(_VIEWS, "test_pages_order_connections_by_number_not_by_text"),
    ),
    Mutation(
        guard="subscribers on all nodes",
        file="gateway/sdk/control_views.py",
        old='                known["subscribers"] += entry["subscribers"]\n',
        new="                pass\n",
        argv=test(_VIEWS, "test_channels_that_match_are_listed_with_their_subscribers"),
    ),
    Mutation(
        guard="limit of a page",
        file="services/control_views.py",
        old="not 1 <= limit <= most",
        new="limit < 1",
        argv=test(_VIEWS, "test_bad_parameters_are_refused_and_audited_once"),
    ),
)
