"""Takes one guard out of the gateway at a time, in a copy of the tree, and runs what must turn red: a row, or a test.

    python -m tests.faults.lab.mutations [--only NAME ...]

A guard is found by its exact text: one that is no longer there is an error, so that the table cannot rot. The exit code
is 1 if something stayed as it was.
"""

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.support.nodes import Process
from tests.support.tools import ROOT

__all__ = ["MUTATIONS", "Mutation", "mutate"]

RUN_WITHIN_S = 240.0
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "node_modules", "__pycache__", ".*_cache", ".hypothesis", "build")


@dataclass(frozen=True, slots=True)
class Mutation:
    """One guard. file, old, new: what is taken out and what stands there instead. argv: what must fail without it."""

    guard: str
    file: str
    old: str
    new: str
    argv: tuple[str, ...]

    @property
    def row(self) -> str:
        """What must turn red, as a person would say it: the row's key, or the test's name."""
        return self.argv[-1].removeprefix("test_").replace("_", " ")


def _fault(key: str) -> tuple[str, ...]:
    return ("-m", "tests.faults.lab", "faults", "--small", "--only", key)


def _test(path: str, name: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path, "-k", name)


def _node_test(file: str) -> tuple[str, ...]:
    return ("-m", "tests.faults.lab.node_test", file)


_SCRIPTS = "gateway/redis/scripts"
MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="version of a list",  # what it has is not told again, when its notice comes behind the reply
        file="gateway/hub.py",
        old=" and not (is_late and heard < told >= version)",
        new="",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_notices_that_a_list_had"),
    ),
    Mutation(
        guard="version of what is held",
        file="gateway/hub.py",
        old=" if version == 0 or version > listed]",
        new="]",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_a_crowd_that_joins_at_once"),
    ),
    Mutation(
        guard="late notices end",  # of a clock that was set back
        file="gateway/hub.py",
        old="is_late = now_s < self._late_until_s",
        new="is_late = True",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_a_clock_of_redis"),
    ),
    Mutation(
        guard="presence holds",
        file="services/pubsub/service.py",
        old="async with self.topics.reading(request.connection, channel):",
        new="if True:",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_presence_is_told_between"),
    ),
    Mutation(
        guard="told to be here all along",
        file="gateway/presence.py",
        old="        self.known = self._known(change)\n",
        new="",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_who_was_told_to_be_here_all_along"),
    ),
    Mutation(
        guard="last seen",  # whose list lacks those in doubt is told that they come
        file="gateway/presence.py",
        old="return self._last_seen.get(place, self.version)",
        new="return self.version",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_who_was_told_to_be_here_all_along"),
    ),
    Mutation(
        guard="version of differences",
        file="gateway/hub.py",
        old="return not version <= told < ahead",
        new="return True",
        argv=_test("tests/unit/test_lists_and_notices.py", "test_differences_are_not_told"),
    ),
    Mutation(
        guard="versions on one Redis",
        file="gateway/redis/versions.py",
        old="        if wire < OLDEST or oldest > WIRE:\n",
        new="        if False:\n",
        argv=_test("tests/unit/test_redis_heartbeat.py", "versions_fit_if_each"),
    ),
    Mutation(
        guard="versions in check",
        file="gateway/redis/rules_probe.py",
        old="    if foreign := foreign_nodes(nodes):\n",
        new="    if foreign := foreign_nodes([]):\n",
        argv=_test("tests/cluster/test_shared_redis.py", "found_by_check"),
    ),
    Mutation(
        guard="rules of all nodes",  # else a node without rules takes away what the others promise
        file=f"{_SCRIPTS}/rules.lua",
        old="  if until_ms and tonumber(until_ms) > counted_ms then\n",
        new="  if lines[at] == ARGV[1] then\n",
        argv=_test("tests/cluster/test_shared_redis.py", "acknowledged and (stray and without)"),
    ),
    Mutation(
        guard="digest of the library",
        file="gateway/redis/library_text.py",
        old="    if told is None or not end or sha1_of(body) != told[1]:\n",
        new="    if told is None or not end:\n",
        argv=_test("tests/contract/test_functions.py", "is_repaired_and_counted and redis-edited"),
    ),
    Mutation(
        guard="library of a later format",
        file="gateway/redis/functions.py",
        old="        if found is Found.LATER:\n",
        new="        if False:\n",
        argv=_test("tests/contract/test_functions.py", "later_format_is_left_alone and redis"),
    ),
    Mutation(
        guard="library of a sibling",  # else nodes of two texts replace each other's without end
        file="gateway/redis/functions.py",
        old=" or (found is Found.SIBLING and self._has_loaded)",
        new="",
        argv=_test("tests/contract/test_functions.py", "do_not_replace_each_other and redis"),
    ),
    Mutation(
        guard="doubt after a foreign library",
        file="gateway/redis/history.py",
        old="        if self._functions.doubt:\n",
        new="        if False:\n",
        argv=_test("tests/cluster/test_shared_redis.py", "acknowledged and older and library"),
    ),
    Mutation(
        guard="publications that are not kept",
        file="gateway/repair.py",
        old="        self._unkept.hear(key, publications)\n",
        new="",
        argv=_test("tests/unit/test_repair.py", "publication_past_history_is_counted"),
    ),
    Mutation(
        guard="positions before what is not kept",
        file=f"{_SCRIPTS}/read.lua",
        old="if lost_epoch == ARGV[1] and",
        new="if false and",
        argv=_test("tests/contract/test_functions.py", "what_is_not_kept_ends_earlier_positions and redis"),
    ),
    Mutation(
        guard="library in check",
        file="gateway/redis/rules_probe.py",
        old="        report.problems.append(problem)\n",
        new="        pass\n",
        argv=_test("tests/cluster/test_shared_redis.py", "check_ends_with_1"),
    ),
    Mutation(
        guard="history that is required",
        file="clients/python/snorky/publication.py",
        old="                if position is None and self.requires_history:\n",
        new="                if False:\n",
        argv=_test("clients/python/tests/test_client_publisher.py", "test_message_that_must_be_kept_and_is_not"),
    ),
    Mutation(
        guard="bytes of a roster",
        file=f"{_SCRIPTS}/enter.lua",
        old="+ grown > bytes_max then",
        new="+ grown > 1e15 then",
        argv=_test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="bytes of new data",
        file=f"{_SCRIPTS}/update.lua",
        old="+ grown > bytes_max then",
        new="+ grown > 1e15 then",
        argv=_test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="bytes given back",
        file=f"{_SCRIPTS}/leave.lua",
        old="'b', string.format('%d', -#field - #value)",
        new="'b', '0'",
        argv=_test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="bytes counted again",  # before somebody is refused
        file="gateway/redis/directory.py",
        old="                    if await self._rosters.weigh(roster):\n                        continue\n",
        new="",
        argv=_test("tests/contract/test_large_rosters.py", "test_bytes_are_counted_again"),
    ),
    Mutation(
        guard="entered again of any size",
        file="gateway/redis/rosters.py",
        old='            b"0" if is_again else self._max_bytes,\n',
        new="            self._max_bytes,\n",
        argv=_test("tests/contract/test_large_rosters.py", "test_what_a_node_holds_already"),
    ),
    Mutation(
        guard="pages of a roster",
        file=f"{_SCRIPTS}/census.lua",
        old="if entries > entries_max or",
        new="if false and",
        argv=_test("tests/contract/test_large_rosters.py", "test_an_oversized_roster_cuts_nobody_off and redis"),
    ),
    Mutation(
        guard="version behind the pages",
        file="gateway/redis/rosters.py",
        old='            if [each or b"" for each in now] == state:\n',
        new="            if True:\n",
        argv=_test("tests/unit/test_redis_rosters.py", "test_a_large_roster_that_changed_meanwhile"),
    ),
    Mutation(
        guard="bytes of a list of names",
        file="gateway/redis/claims.py",
        old="            if size > LIST_MAX_BYTES:\n",
        new="            if False:\n",
        argv=_test("tests/contract/test_large_rosters.py", "test_many_names_are_listed and redis"),
    ),
    Mutation(
        guard="rights in check",
        file="gateway/redis/probe.py",
        old="        await _permitted(client, prefix, report)\n        await _hear",
        new="        await _hear",
        argv=_test("tests/e2e/test_redis_rights.py", "names_each"),
    ),
    Mutation(
        guard="recovery that cannot be taken",  # told so instead of closed, again and again
        file="services/pubsub/replies.py",
        old='    reply.instead = {"position": str(recovery.position), "recovered": False, "messages": []}\n',
        new="",
        argv=_test("tests/unit/test_pubsub_rules.py", "test_who_cannot_take_what_it_missed"),
    ),
    Mutation(
        guard="bytes of an inbox",
        file="gateway/inbox.py",
        old=" or self._bytes >= MAX_BYTES)",
        new=")",
        argv=_test("tests/unit/test_inbox.py", "test_messages_that_wait_are_bounded_in_bytes_too"),
    ),
    Mutation(
        guard="bytes of a cursor",
        file="services/cursors.py",
        old="if json_size(data) > self._cursor_max_bytes:",
        new="if False:",
        argv=_test("tests/unit/test_waiting.py", "test_a_cursor_is_bounded_in_bytes"),
    ),
    Mutation(
        guard="undone join",  # of a room whose list no client could take
        file="services/chat.py",
        old="                with suppress(BrokerUnavailable):  # then it is done as soon as it can be\n"
        "                    await self.rosters.leave(request.connection, channel)\n",
        new="",
        argv=_test("tests/unit/test_waiting.py", "test_a_join_whose_list_no_client_could_take and chat"),
    ),
    Mutation(
        guard="shared lists of names",
        file="gateway/shared_reads.py",
        old="        task = self._next.get(key)\n",
        new="        task = None\n        return await self._read(key)\n",
        argv=_test("tests/unit/test_waiting.py", "test_those_that_ask_at_the_same_time_share_one_list"),
    ),
    Mutation(
        guard="bound of waiting replies",
        file="gateway/waiting.py",
        old="if self.total_bytes > self._max_bytes:",
        new="if False:",
        argv=_test("tests/unit/test_waiting.py", "test_a_crowd_that_asks_for_lists_and_reads_nothing"),
    ),
    Mutation(
        guard="size of a reply",
        file="gateway/service.py",
        old="connection.write_reply(frames)",
        new="connection.write(frames)",
        argv=_test("tests/unit/test_waiting.py", "test_a_list_that_no_client_could_take_is_refused_and_counted"),
    ),
    Mutation(
        guard="room for a reply",  # asked for before it is written
        file="gateway/connection.py",
        old="        if not self.has_room(len(frame)):\n",
        new="        if False:\n",
        argv=_test("tests/unit/test_connection.py", "test_a_reply_counts_before_it_is_written"),
    ),
    Mutation(
        guard="tag check",  # all tags alike: a position is epoch and offset alone
        file=f"{_SCRIPTS}/publish.lua",
        old="  return entropy .. string.format('%08x', mixed)",
        new="  return '00000000'",
        argv=_test("tests/contract/test_history.py", "test_a_position_of_another_history_is_refused and redis"),
    ),
    Mutation(
        guard="run of who publishes",  # else an older copy of a history goes on under the same epoch
        file=f"{_SCRIPTS}/publish.lua",
        old="    epoch = nil -- this run",
        new="    -- this run",
        argv=_test("tests/contract/test_history.py", "test_after_a_restart_from_an_older_copy and publish and redis"),
    ),
    Mutation(
        guard="run of who reads",
        file=f"{_SCRIPTS}/read.lua",
        old="  return {} -- this run",
        new="  -- this run",
        argv=_test("tests/contract/test_history.py", "test_after_a_restart_from_an_older_copy and read and redis"),
    ),
    Mutation(
        guard="run of who subscribes",
        file=f"{_SCRIPTS}/position.lua",
        old="if state[4] ~= run then",
        new="if not epoch then",
        argv=_test("tests/contract/test_history.py", "test_after_a_restart_from_an_older_copy and positions and redis"),
    ),
    Mutation(
        guard="canary",
        file="gateway/redis/canary.py",
        old="        elif now - self._sent_at >= self._deadline_s:\n            self._on_missing(now)\n",
        new="",
        argv=_fault("half-open"),
    ),
    Mutation(
        guard="rollback",  # of a subscription that failed
        file="gateway/subscriptions.py",
        old="if key in connection.channels:\n                self.remove(connection, key)\n            raise",
        new="raise",
        argv=_fault("freeze"),
    ),
    Mutation(
        guard="sockjs: session before body",
        file="gateway/http/sockjs/handler.py",
        old="        if found is None:\n            return self._turn_away(request, ip, None)\n",
        new="",
        argv=_test("tests/unit/test_sockjs_bodies.py", "test_a_body_for_an_unknown_session_is_not_read"),
    ),
    Mutation(
        guard="sockjs: session after body",
        file="gateway/http/sockjs/handler.py",
        old="if session is not found:",
        new="if session is None:",
        argv=_test("tests/unit/test_sockjs_bodies.py", "test_a_session_that_ends_while_its_body_comes"),
    ),
    Mutation(
        guard="sockjs: deadline of bodies",
        file="gateway/http/sockjs/bodies.py",
        old="asyncio.timeout(BODY_TIMEOUT_S)",
        new="asyncio.timeout(None)",
        argv=_test("tests/unit/test_sockjs_bodies.py", "test_a_body_that_never_comes"),
    ),
    Mutation(
        guard="sockjs: bytes under way of one address",
        file="gateway/http/sockjs/bodies.py",
        old="if self._reserved[site] + size > ADDRESS_MAX_BYTES:",
        new="if False:",
        argv=_test("tests/unit/test_sockjs_bodies.py", "test_one_address_has_a_bound"),
    ),
    Mutation(
        guard="frames of one client",
        file="gateway/registry.py",
        old="if limiter is not None and not limiter.take_frame():",
        new="if False:",
        argv=_test("tests/unit/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="fragments count",
        file="gateway/frames.py",
        old="            self._on_fragment()\n            self._message += payload",
        new="            self._message += payload",
        argv=_test("tests/unit/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="frames behind a close",
        file="gateway/http/websocket.py",
        old="                self._count_frame()\n                return  # RFC",
        new="                return  # RFC",
        argv=_test("tests/unit/test_flood.py", "test_what_comes_behind_our_close"),
    ),
    Mutation(
        guard="bytes per second",
        file="gateway/limiter.py",
        old="if sizes.tokens < wanted_bytes:",
        new="if False:",
        argv=_test("tests/unit/test_flood.py", "test_bytes_are_limited"),
    ),
    Mutation(
        guard="share of an address",
        file="gateway/shares.py",
        old='found.append(self._find("per_ip", site_of(remote_ip), self._per_ip))',
        new="pass",
        argv=_test("tests/unit/test_flood.py", "test_connecting_again_gives_no_fresh_burst"),
    ),
    Mutation(
        guard="shares remembered",
        file="gateway/shares.py",
        old="        self._remembered[key] = share\n        self._remembered.move_to_end(key)\n",
        new="",
        argv=_test("tests/unit/test_shares.py", "test_a_share_is_remembered"),
    ),
    Mutation(
        guard="handshakes of an address",
        file="gateway/http/admission.py",
        old="if not self._knocks.take(site_of(ip)):",
        new="if False:",
        argv=_test("tests/unit/test_flood.py", "test_an_address_that_connects_too_often"),
    ),
    Mutation(
        guard="messages that never end",
        file="gateway/http/websocket.py",
        old="elif is_new and not self._connection.is_closed:",
        new="elif False:",
        argv=_test("tests/unit/test_flood.py", "test_a_message_that_never_ends"),
    ),
    Mutation(
        guard="sockjs: requests without a message",
        file="gateway/http/sockjs/session.py",
        old="            if not messages:\n                self._count_nothing()\n",
        new="",
        argv=_test("tests/unit/test_flood.py", "test_requests_that_bring_no_message"),
    ),
    Mutation(
        guard="quota of publications",
        file="gateway/topics.py",
        old="if by is not None and (history is not None or once is not None):",
        new="if False:",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_anonymous_clients_of_an_address"),
    ),
    Mutation(
        guard="quota of places",
        file="gateway/primitives.py",
        old="        self._cluster.quotas.charge(connection, ENTRY_BYTES + (0 if data is None else json_size(data)))\n",
        new="",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="quota of names",
        file="gateway/primitives.py",
        old="        self._cluster.quotas.charge(connection, ENTRY_BYTES)\n",
        new="",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="keys by rule",
        file="services/pubsub/service.py",
        old="rule.client_publish and (once is None or rule.client_keys)",
        new="rule.client_publish",
        argv=_test("tests/unit/test_pubsub_rules.py", "test_clients_have_keys_where"),
    ),
    Mutation(
        guard="readiness of a full redis",
        file="gateway/http/ops.py",
        old='        reasons += ["redis_full"] * node.is_redis_full()\n',
        new="",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_a_full_redis_makes_nodes_unready"),
    ),
    Mutation(
        guard="memory before it is full",
        file="gateway/redis/memory_watch.py",
        old="(self.used >= bound and not evicts)",
        new="False",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_a_full_redis_makes_nodes_unready"),
    ),
    Mutation(
        guard="refused writes",
        file="gateway/redis/memory_watch.py",
        old="is_refused, refusal = _is_oom(error), _refusal(error)",
        new="is_refused, refusal = False, _refusal(error)",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_a_refused_write_is_enough"),
    ),
    Mutation(
        guard="check: memory of redis",
        file="gateway/redis/probe.py",
        old="    _judge_memory(info, report)\n",
        new="",
        argv=_test("tests/cluster/test_stored_bytes.py", "test_check_tells_what_the_memory"),
    ),
    Mutation(
        guard="fencing",
        file=f"{_SCRIPTS}/renew.lua",
        old="if redis.call('EXISTS', KEYS[2]) == 1 then",
        new="if false then",
        argv=_fault("stall"),
    ),
    Mutation(
        guard="compare-and-delete",
        file=f"{_SCRIPTS}/release.lua",
        old="if value and (value .. ' '):sub(1, #ARGV[at + 1] + 1) == ARGV[at + 1] .. ' ' then",
        new="if value then",
        argv=_fault("kill"),
    ),
    Mutation(
        guard="idempotency",
        file=f"{_SCRIPTS}/publish.lua",
        old="  if before then\n    return before\n  end",
        new="",
        argv=_fault("replies"),
    ),
    Mutation(
        guard="await of the confirmation",
        file="gateway/subscriptions.py",
        old="        await self._broker.subscribe(key)\n",
        new="        __import__('asyncio').ensure_future(self._broker.subscribe(key))\n",
        argv=_fault("freeze"),
    ),
    Mutation(
        guard="entropy of epochs",  # as Redis' own math.random would have it: alike after every start
        file=f"{_SCRIPTS}/publish.lua",
        old="  epoch = string.format('%x', time[1]) .. string.sub(ARGV[3], 1, 16)",
        new="  epoch = string.format('%x', math.random(2147483647))",
        argv=_test("tests/contract/test_history.py", "test_epoch_and_tags_are_others_after_every_start_of_the_server"),
    ),
    Mutation(
        guard="counter outlives its stream",
        file=f"{_SCRIPTS}/publish.lua",
        old="string.format('%d', ttl_ms + step_ms + ARGV[6]))",
        new="string.format('%d', ttl_ms + step_ms))",
        argv=_test("tests/contract/test_history.py", "test_the_counter_outlives_what_is_kept"),
    ),
    Mutation(
        guard="tag of the predecessor",  # of a position whose own entry was trimmed
        file=f"{_SCRIPTS}/read.lua",
        old="  if offset ~= since + 1 or fields[4] ~= tag then",
        new="  if offset ~= since + 1 then",
        argv=_test("tests/contract/test_history.py", "test_size_bounds_and_what_is_trimmed_is_gone"),
    ),
    Mutation(
        guard="bound of an entry",  # that is read: one large one would end the connection that reads for all channels
        file=f"{_SCRIPTS}/read.lua",
        old="#fields[6] <= payload_max_bytes and fields[6]",
        new="fields[6]",
        argv=_fault("oversize"),
    ),
    Mutation(
        guard="bound of a page",  # it ends before the entry that is too much, not behind it
        file=f"{_SCRIPTS}/read.lua",
        old="    if bytes > max_bytes and #answer > 1 then",
        new="    if false then",
        argv=_test("tests/contract/test_history.py", "test_a_reply_is_bounded"),
    ),
    Mutation(
        guard="size of a payload",  # that any client of Redis publishes
        file="gateway/redis/library/snorky_publish.lua",
        old="  if #payload > PAYLOAD_MAX_BYTES then",
        new="  if false then",
        argv=_test("tests/cluster/test_channel_rules.py", "the_function_takes_what_a_backend"),
    ),
    Mutation(
        guard="size of what is heard",
        file="gateway/fanout.py",
        old="        if len(payload) > self._payload_max_bytes:",
        new="        if False:",
        argv=_test("tests/unit/test_fanout.py", "test_what_is_larger_than_anybody"),
    ),
    Mutation(
        guard="portion of a recovery",  # that the reply brings: a client behind a slow line waits for no more
        file="services/pubsub/replies.py",
        old="REPLY_MAX_BYTES: Final = 32_768",
        new="REPLY_MAX_BYTES: Final = 1 << 20",
        argv=_test("tests/e2e/test_python_realtime.py", "test_client_behind_a_slow_line_recovers_in_one_go"),
    ),
    Mutation(
        guard="silence of a gateway",  # that vanished
        file="clients/python/snorky/realtime/socket.py",
        old="        socket.transport.abort()",
        new="        pass",
        argv=_test("tests/e2e/test_python_realtime.py", "test_gateway_that_vanished_is_noticed"),
    ),
    Mutation(
        guard="portion of a page",  # of history
        file="gateway/redis/history.py",
        old="FIRST_MAX_BYTES: Final = 131_072",
        new="FIRST_MAX_BYTES: Final = 1 << 21",
        argv=_test("tests/contract/test_history.py", "test_a_reply_is_bounded"),
    ),
    Mutation(
        guard="place of what is too large",
        file="gateway/fanout.py",
        old="if publication.position is not None and len(publication.payload) > self._payload_max_bytes:",
        new="if False:",
        argv=_test("tests/unit/test_repair.py", "test_what_is_too_large_is_a_tombstone_for_who_recovers"),
    ),
    Mutation(
        guard="look for what has not arrived",  # of a slot that moves
        file="gateway/redis/library/snorky_publish.lua",
        old="local met = IS_SHARDED and obstacle(own)",
        new="local met = false and obstacle(own)",
        argv=_test(
            "tests/faults/test_cluster.py", "test_a_publisher_sent_on_while_a_slot_moves_begins_no_second_history"
        ),
    ),
    Mutation(
        guard="look for a claim behind a write",
        file="gateway/redis/directory.py",
        old='            if is_fenced:\n                raise BrokerUnavailable("fenced meanwhile")\n',
        new="",
        argv=_test("tests/faults/test_leases.py", "test_a_write_after_the_reaping_is_undone_by_who_wrote_it"),
    ),
    Mutation(
        guard="leases without memory",
        file=f"{_SCRIPTS}/renew.lua",
        old="#!lua flags=allow-oom",
        new="#!lua",
        argv=_test("tests/faults/test_leases.py", "test_a_full_redis_refuses_who_comes_and_lets_go_who_goes"),
    ),
    Mutation(
        guard="watch over the primary",
        file="gateway/redis/link.py",
        old="if await self._target.resolved(max_age_s=WATCH_S / 2) != wire.server:",
        new="if False:",
        argv=_test("tests/faults/test_sentinel.py", "test_a_cut_off_primary_that_answers_its_own_canary_is_left"),
    ),
    Mutation(
        guard="one pass after another",  # chunks of several passes take turns instead
        file="gateway/passes.py",
        old="        if passes:\n            if not was_paused:",
        new="        if passes:\n            passes.rotate(-1)\n            if not was_paused:",
        argv=_test("tests/unit/test_fanout.py", "test_passes_never_overtake"),
    ),
    Mutation(
        guard="rosters after deafness",
        file="gateway/node.py",
        old="            self._presences.interrupted()\n",
        new="            pass\n",
        argv=_test("tests/faults/test_presence.py", "test_who_came_and_went_while_a_node_was_cut_off_is_told_once"),
    ),
    Mutation(
        guard="a second look before somebody left",
        file="gateway/presence.py",
        old="if now_s - since_s >= self._grace_s:",
        new="if True:",
        argv=_test("tests/unit/test_presences.py", "test_who_is_entered_again_within_the_grace_has_never_left"),
    ),
    Mutation(
        guard="asserting to who took over",
        file="gateway/redis/directory.py",
        old="        self._commanders[0].on_up = self._on_connected\n",
        new="",
        argv=_test("tests/faults/test_leases.py", "test_after_a_restart_from_an_older_copy_rosters and redis"),
    ),
    Mutation(
        guard="strays of an older copy",
        file="gateway/redis/comparison.py",
        old="strays = [each for each in read if not self._is_known(owner, each)]",
        new="strays: list[Holding] = []",
        argv=_test("tests/faults/test_leases.py", "test_after_a_restart_from_an_older_copy_rosters and redis"),
    ),
    Mutation(
        guard="patience with names of an older copy",
        file="gateway/redis/upkeep.py",
        old="if asyncio.get_running_loop().time() < self._contest_until:",
        new="if False:",
        argv=_test("tests/faults/test_leases.py", "test_a_name_of_an_older_copy_is_waited_for and redis"),
    ),
    Mutation(
        guard="readiness by what services write",
        file="gateway/http/ops.py",
        old='        reasons += ["redis_refuses"] * bool(refusal := node.redis_refusal())\n',
        new='        refusal = ""\n',
        argv=_test("tests/cluster/test_stored_bytes.py", "test_a_redis_that_refuses_writes and replica"),
    ),
    Mutation(
        guard="leases under a clock that was set back",
        file=f"{_SCRIPTS}/renew.lua",
        old="bound(KEYS[1], until_ms)\n",
        new="",
        argv=_test("tests/faults/test_leases.py", "test_who_died_before_the_clock and redis"),
    ),
    Mutation(
        guard="sightings by who can renew",
        file="gateway/redis/reaper.py",
        old="if self._lease.is_failing or not self._lease.is_held:",
        new="if False:",
        argv=_test("tests/faults/test_leases.py", "test_redis_that_answers_and_refuses_writes and redis"),
    ),
    Mutation(
        guard="comparison with the ledger",
        file="gateway/redis/upkeep.py",
        old="                    await self._compare()\n",
        new="                    pass\n",
        argv=_test("tests/faults/test_leases.py", "test_what_redis_evicted and redis"),
    ),
    Mutation(
        guard="keys of one user",
        file="services/pubsub/parameters.py",
        old='    return f"identity {identity} {key}"',
        new='    return f"identity {key}"',
        argv=_test("tests/unit/test_pubsub_rules.py", "test_keys_of_two_users_never_collide"),
    ),
    Mutation(
        guard="taking a token again",
        file=f"{_SCRIPTS}/take.lua",
        old="if string.sub(taken, 1, blank - 1) == ARGV[1]",
        new="if false",
        argv=_test("tests/cluster/test_datasync_over_nodes.py", "test_an_acquisition_whose_answer_from_redis_was_lost"),
    ),
    Mutation(
        guard="room at the other end",  # a proxy with a deep buffer makes some seldom
        file="gateway/http/progress.py",
        old="bool(unacked) or probes > _PROBES_MAX",
        new="bool(unacked or transport.get_write_buffer_size())",
        argv=_test("tests/unit/test_progress.py", "test_what_waits_for_room"),
    ),
    Mutation(
        guard="acknowledged bytes as a sign of life",
        file="gateway/http/progress.py",
        old="        return self._credit_s > 0",
        new="        return False",
        argv=_test("tests/unit/test_websocket.py", "test_a_client_on_a_slow_line_is_not_cut_while_it_takes"),
    ),
    Mutation(
        guard="a ping to a silent client",
        file="gateway/http/websocket.py",
        old="            self._connection.write(PING_FRAME)  # if the line dies now, this stays unacknowledged",
        new="            pass",
        argv=_test("tests/unit/test_websocket.py", "test_a_silent_client_is_pinged_again"),
    ),
    Mutation(
        guard="strength of secrets",
        file="gateway/secret_values.py",
        old="    if bits < STRENGTH_MIN_BITS or len(steps) == 1:",
        new="    if False:",
        argv=_test("tests/unit/test_settings.py", "test_a_secret_that_can_be_guessed_is_refused"),
    ),
    Mutation(
        guard="invisible characters",
        file="gateway/settings.py",
        old="                    check_visible(text)",
        new="                    pass",
        argv=_test("tests/unit/test_settings.py", "test_an_invisible_character_in_a_secret"),
    ),
    Mutation(
        guard="line ends of secret files",
        file="gateway/secret_values.py",
        old="""    return text.removeprefix("\\ufeff").rstrip("\\r\\n")""",
        new="    return text",
        argv=_test("tests/unit/test_settings.py", "test_line_ends_and_a_byte_order_mark_of_a_file"),
    ),
    Mutation(
        guard="variables near a setting",
        file="gateway/settings.py",
        old="        elif near:\n",
        new="        elif False:\n",
        argv=_test("tests/unit/test_settings.py", "test_a_variable_near_a_setting_is_an_error"),
    ),
    Mutation(
        guard="origins that can never match",
        file="gateway/origins.py",
        old="    if not _NAME.fullmatch(name):",
        new="    if False:",
        argv=_test("tests/unit/test_origins.py", "test_an_entry_that_can_never_match_is_refused"),
    ),
    Mutation(
        guard="a brake on wrong keys",
        file="gateway/http/backend_door.py",
        old='self._brake.wait_s(request.remote or "")',
        new="0.0",
        argv=_test("tests/unit/test_backend.py", "test_wrong_keys_are_counted_logged_and_slowed"),
    ),
    Mutation(
        guard="a key before the body",
        file="gateway/http/backend_door.py",
        old="                return await self._refuse_key(request)",
        new="                await request.read()\n                return await self._refuse_key(request)",
        argv=_test("tests/unit/test_backend_door.py", "test_a_key_is_looked_at_before_the_body"),
    ),
    Mutation(
        guard="pages by their Host",
        file="gateway/http/backend_door.py",
        old='    return "" if all(map(_is_local, hosts)) and len(hosts) < 2 else "host"',
        new='    return ""',
        argv=_test("tests/unit/test_backend_door.py", "test_without_a_key_no_page_gets_anything"),
    ),
    Mutation(
        guard="pages by Sec-Fetch-Site",
        file="gateway/http/backend_door.py",
        old='        return "fetch_site"',
        new="        pass",
        argv=_test("tests/unit/test_backend_door.py", "test_without_a_key_no_page_gets_anything"),
    ),
    Mutation(
        guard="log lines of refusals",
        file="gateway/refusals.py",
        old='        _log.info("refused"',
        new='        _log.debug("nothing"',
        argv=_test("tests/unit/test_refusals.py", "leaves_a_line"),
    ),
    Mutation(
        guard="ready line",  # a stop that comes right after /readyz said 200
        file="gateway/process.py",
        old="        if gateway.node.is_ready:  #",
        new="        if False:  #",
        argv=_test("tests/cluster/test_start_stop.py", "between and not workers"),
    ),
    Mutation(
        guard="ready line with workers",
        file="gateway/http/workers.py",
        old="        on_ready()\n",
        new="",
        argv=_test("tests/cluster/test_start_stop.py", "between and workers"),
    ),
    Mutation(
        guard="url fragment",  # the host of redis://:#secret@host was not looked at
        file="gateway/redis/url.py",
        old='    if "#" in url:',
        new="    if False:",
        argv=_test("tests/unit/test_redis_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="url query",
        file="gateway/redis/url.py",
        old='    if scheme != "unix" and (\n',
        new="    if False and (\n",
        argv=_test("tests/unit/test_redis_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="prefix of a publisher",
        file="clients/python/snorky/publisher.py",
        old="        if not _PREFIX(prefix):",
        new="        if False:",
        argv=_test("tests/unit/test_redis_url.py", "prefix"),
    ),
    Mutation(
        guard="url secret",  # the text of an error repeats no option that may be a password
        file="gateway/redis/url.py",
        old="an option is unknown for {scheme}",
        new="an option is unknown: {name} for {scheme}",
        argv=_test("tests/unit/test_redis_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="JS: who has been connected is not ended by a refusal",
        file="clients/js/link.js",
        old="    if (refusal === null || !refusal.isFinal || this.#hasBeenOpen) return false;",
        new="    if (refusal === null || !refusal.isFinal) return false;",
        argv=_node_test("clients/js/test/refusal.test.js"),
    ),
    Mutation(
        guard="JS: a crowd asks less and less often",
        file="clients/js/link.js",
        old="    else if ((this.#failures & (this.#failures - 1)) === 0) void",
        new="    else void",
        argv=_node_test("clients/js/test/refusal.test.js"),
    ),
    Mutation(
        guard="pages may read a refusal",
        file="gateway/http/handler.py",
        old="            headers |= SEEN_BY_PAGES\n",
        new="",
        argv=_test("tests/unit/test_site.py", "test_a_page_may_read_why_it_was_refused"),
    ),
    Mutation(
        guard="a page that asks is told of its origin",
        file="gateway/http/handshake.py",
        old='        check_origin(origin, headers.get("Host", ""), allowed_origins)  #',
        new="        pass  #",
        argv=_test("tests/unit/test_site.py", "test_a_page_may_read_why_it_was_refused"),
    ),
    Mutation(
        guard="relayed payloads are no replies",
        file="gateway/topics.py",
        old="        if is_reply(payload) and",
        new="        if False and",
        argv=_test("tests/unit/test_service.py", "test_relayed_payload_cannot_stand_where_a_reply_does"),
    ),
    Mutation(
        guard="direct messages are no replies",
        file="gateway/primitives.py",
        old="        if is_reply(message):",
        new="        if False:",
        argv=_test("tests/unit/test_service.py", "test_relayed_payload_cannot_stand_where_a_reply_does"),
    ),
    Mutation(
        guard="JS: replies of the called service only",
        file="clients/js/connection.js",
        old=" || (service !== undefined && call.request.service !== service)",
        new="",
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: call ids that nobody guesses",
        file="clients/js/connection.js",
        old="  #callIdPrefix = randomHex(8);",
        new='  #callIdPrefix = "0000000000000000";',
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: integers of 64 bits",
        file="clients/js/values.js",
        old="  if (isBeyond && ",
        new="  if (false && ",
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: lone surrogates",
        file="clients/js/values.js",
        old="  if (LONE_SURROGATE.test(text)) throw",
        new="  if (false) throw",
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: count of values",
        file="clients/js/values.js",
        old="    if (this.#seen > VALUES_MAX) throw",
        new="    if (this.#seen > 1e9) throw",
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: a poison message goes alone",
        file="clients/js/connection.js",
        old="code === TOO_LARGE ? calls[sizes.indexOf(Math.max(...sizes))] : undefined;",
        new="undefined;",
        argv=_node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="last close code",  # the command line came back for ever after a refused token
        file="gateway/http/client.py",
        old="                if code in _FINAL_CODES:",
        new="                if False:",
        argv=_test("tests/cluster/test_commands.py", "says_who_it_is"),
    ),
    Mutation(
        guard="clock of samples",  # rates were divided by the time between two looks
        file="gateway/commands/stats.py",
        old='if "sampled_s" in node.state else seen_s',
        new='if "" in node.state else seen_s',
        argv=_test("tests/unit/test_stats.py", "divided_by_the_time"),
    ),
    Mutation(
        guard="refusal that cannot heal",  # a wrong URL was tried without end
        file="clients/python/snorky/realtime/session.py",
        old="        return not refusal.can_heal and not self._was_connected",
        new="        return False",
        argv=_test("clients/python/tests/test_realtime_refused.py", "cannot_heal"),
    ),
    Mutation(
        guard="refusal of who was connected",
        file="clients/python/snorky/realtime/session.py",
        old=" and not self._was_connected",
        new="",
        argv=_test("clients/python/tests/test_realtime_refused.py", "was_connected"),
    ),
    Mutation(
        guard="time of a refusal",
        file="clients/python/snorky/realtime/session.py",
        old="delay_s = max(delay_s, refusal.retry_after_s)",
        new="pass",
        argv=_test("clients/python/tests/test_realtime_refused.py", "time_that"),
    ),
    Mutation(
        guard="threads of a fork",
        file="clients/python/snorky/aio/threads.py",
        old="        if self._pid != os.getpid():  #",
        new="        if False:  #",
        argv=_test("clients/python/tests/test_client_fork.py", "goes_on_in_both"),
    ),
    Mutation(
        guard="realtime client of a fork",
        file="clients/python/snorky/realtime/client.py",
        old="        if not self.is_ours:\n            raise",
        new="        if False:\n            raise",
        argv=_test("clients/python/tests/test_client_fork.py", "realtime"),
    ),
    Mutation(
        guard="sentence of run",
        file="gateway/process.py",
        old="    except ConfigurationError as error:",
        new="    except ZeroDivisionError as error:",
        argv=_test("tests/e2e/test_examples.py", "program_of_ones_own"),
    ),
    Mutation(
        guard="headers of publishers",  # whatever a publisher says is taken for a node's word
        file="gateway/redis/heard.py",
        old="            if data[:1] != MARK:",
        new="            if True:",
        argv=_test("tests/e2e/test_deploy_redis.py", "forges"),
    ),
    Mutation(
        guard="hints",  # a position that a publisher told is believed
        file="gateway/publication.py",
        old="            return Publication(told.payload, hint=told.position)",
        new="            return told",
        argv=_test("tests/e2e/test_deploy_redis.py", "forges"),
    ),
    Mutation(
        guard="rosters of nodes alone",  # a publisher may write the roster of its channel
        file="gateway/redis/names.py",
        old='    return node_channel_name(prefix, key) + b":roster"\n',
        new='    return channel_name(prefix, key) + b":roster"\n',
        argv=_test("tests/unit/test_redis_names.py", "covers"),
    ),
    Mutation(
        guard="escaped idempotency keys",  # a key can be spelled like the state of another channel
        file="gateway/redis/names.py",
        old='once.replace("%", "%25").replace("}", "%7D").encode()',
        new="once.encode()",
        argv=_test("tests/unit/test_redis_names.py", "share"),
    ),
    Mutation(
        guard="escaped idempotency keys of the function",
        file="gateway/redis/library/snorky_publish.lua",
        old=" .. escaped(once) or nil}",
        new=" .. once or nil}",
        argv=_test("tests/contract/test_functions.py", "looks_like and redis"),
    ),
    Mutation(
        guard="sockjs: credential",  # who knows a session's id reads and sends
        file="gateway/http/sockjs/binding.py",
        old='            return "credential"\n',
        new='            return "admitted"\n',
        argv=_test("tests/unit/test_sockjs_binding.py", "openers_alone"),
    ),
    Mutation(
        guard="sockjs: credential between nodes",
        file="gateway/http/sockjs/lender.py",
        old='    return "credential" if who is None else session.binding.judge(Who.read(who))',
        new='    return "admitted"',
        argv=_test("tests/unit/test_sockjs_binding.py", "openers_alone"),
    ),
    Mutation(
        guard="sockjs: origin of the session",
        file="gateway/http/sockjs/binding.py",
        old="        if who.origin and self._opener.origin and who.origin != self._opener.origin:",
        new="        if False:",
        argv=_test("tests/unit/test_sockjs_binding.py", "origin_that_opened"),
    ),
    Mutation(
        guard="sockjs: headers of a login",  # only cookies are looked at
        file="gateway/http/sockjs/binding.py",
        old="        if name not in _VARYING and not name.startswith(_VARYING_BEGINNINGS)",
        new='        if name == "cookie"',
        argv=_test("tests/unit/test_sockjs_binding.py", "may_look_at"),
    ),
    Mutation(
        guard="sockjs: navigation",
        file="gateway/http/sockjs/page_check.py",
        old="    if is_navigation:",
        new="    if False:",
        argv=_test("tests/unit/test_sockjs_binding.py", "leads_a_browser"),
    ),
    Mutation(
        guard="sockjs: Referer",
        file="gateway/http/sockjs/page_check.py",
        old='    if "Referer" in request.headers:\n        check_referer',
        new='    if "Referer" not in request.headers:\n        check_referer',
        argv=_test("tests/unit/test_sockjs_binding.py", "leads_a_browser or iframes"),
    ),
    Mutation(
        guard="sockjs: guesses of ids",
        file="gateway/http/sockjs/handler.py",
        old="        if site is not None and self._brake.wait_s(site) is None:",
        new="        if False:",
        argv=_test("tests/unit/test_sockjs_binding.py", "few_guesses"),
    ),
)


def mutate(tree: Path, mutation: Mutation) -> None:
    """Take the guard out. Raises AssertionError: its text does not stand there exactly once."""
    path = tree / mutation.file
    text = path.read_text(encoding="utf-8")
    count = text.count(mutation.old)
    assert count == 1, f"{mutation.guard}: its text stands {count} times in {mutation.file}, not once:\n{mutation.old}"
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")


async def turns_red(mutation: Mutation) -> tuple[bool, str]:
    """Run the row without its guard; returns whether it failed, and what it said last."""
    with tempfile.TemporaryDirectory(prefix="mutation-") as directory:
        tree = Path(directory) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT)
        mutate(tree, mutation)
        process = Process([sys.executable, *mutation.argv], cwd=tree)
        try:
            code = await process.wait(RUN_WITHIN_S)
        except TimeoutError:
            return True, f"did not end within {RUN_WITHIN_S:g} s"
        finally:
            await process.close()
    broken = [line.strip() for line in process.log.splitlines() if "BROKEN:" in line or line.startswith("E  ")]
    return code == 1 and bool(broken), (broken or process.log.strip().splitlines() or [""])[0]


async def main(chosen: list[Mutation]) -> int:
    """Run these, tell each."""
    stayed = 0
    width = max(len(mutation.guard) for mutation in chosen)
    for mutation in chosen:
        began_s = time.monotonic()
        is_red, said = await turns_red(mutation)
        stayed += not is_red
        state = "red" if is_red else "STAYED"
        took_s = time.monotonic() - began_s
        print(f"{mutation.guard:<{width}}  {state:<6}  {took_s:3.0f} s  {mutation.row}: {said[:110]}", flush=True)
    return int(stayed > 0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.faults.lab.mutations")
    names = [mutation.guard for mutation in MUTATIONS]
    parser.add_argument("--only", nargs="+", choices=names, metavar="GUARD", help=", ".join(names))
    only = parser.parse_args().only or names
    sys.exit(asyncio.run(main([mutation for mutation in MUTATIONS if mutation.guard in only])))
