"""Guards of the node itself: connections, channels, rosters, limits."""

from tests.faults.lab.mutations.mutation import Mutation, fault, test

__all__ = ["GATEWAY_MUTATIONS"]

GATEWAY_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="version of a list",  # what it has is not told again, when its notice comes behind the reply
        file="gateway/hub.py",
        old=" and not (is_late and heard < told >= version)",
        new="",
        argv=test("tests/unit/test_lists_and_notices.py", "test_notices_that_a_list_had"),
    ),
    Mutation(
        guard="version of what is held",
        file="gateway/hub.py",
        old=" if version == 0 or version > listed]",
        new="]",
        argv=test("tests/unit/test_lists_and_notices.py", "test_a_crowd_that_joins_at_once"),
    ),
    Mutation(
        guard="late notices end",  # of a clock that was set back
        file="gateway/hub.py",
        old="is_late = now_s < self._late_until_s",
        new="is_late = True",
        argv=test("tests/unit/test_lists_and_notices.py", "test_a_clock_of_redis"),
    ),
    Mutation(
        guard="told to be here all along",
        file="gateway/presence.py",
        old="        self.known = self._known(change)\n",
        new="",
        argv=test("tests/unit/test_lists_and_notices.py", "test_who_was_told_to_be_here_all_along"),
    ),
    Mutation(
        guard="last seen",  # whose list lacks those in doubt is told that they come
        file="gateway/presence.py",
        old="return self._last_seen.get(place, self.version)",
        new="return self.version",
        argv=test("tests/unit/test_lists_and_notices.py", "test_who_was_told_to_be_here_all_along"),
    ),
    Mutation(
        guard="version of differences",
        file="gateway/hub.py",
        old="return not version <= told < ahead",
        new="return True",
        argv=test("tests/unit/test_lists_and_notices.py", "test_differences_are_not_told"),
    ),
    Mutation(
        guard="publications that are not kept",
        file="gateway/repair.py",
        old="        self._unkept.hear(key, publications)\n",
        new="",
        argv=test("tests/unit/test_repair.py", "publication_past_history_is_counted"),
    ),
    Mutation(
        guard="bytes of an inbox",
        file="gateway/inbox.py",
        old=" or self._bytes >= MAX_BYTES)",
        new=")",
        argv=test("tests/unit/test_inbox.py", "test_messages_that_wait_are_bounded_in_bytes_too"),
    ),
    Mutation(
        guard="shared lists of names",
        file="gateway/shared_reads.py",
        old="        task = self._next.get(key)\n",
        new="        task = None\n        return await self._read(key)\n",
        argv=test("tests/unit/test_waiting.py", "test_those_that_ask_at_the_same_time_share_one_list"),
    ),
    Mutation(
        guard="bound of waiting replies",
        file="gateway/waiting.py",
        old="if self.total_bytes > self._max_bytes:",
        new="if False:",
        argv=test("tests/unit/test_waiting.py", "test_a_crowd_that_asks_for_lists_and_reads_nothing"),
    ),
    Mutation(
        guard="size of a reply",
        file="gateway/service.py",
        old="connection.write_reply(frames)",
        new="connection.write(frames)",
        argv=test("tests/unit/test_waiting.py", "test_a_list_that_no_client_could_take_is_refused_and_counted"),
    ),
    Mutation(
        guard="room for a reply",  # asked for before it is written
        file="gateway/connection.py",
        old="        if not self.has_room(len(frame)):\n",
        new="        if False:\n",
        argv=test("tests/unit/test_connection.py", "test_a_reply_counts_before_it_is_written"),
    ),
    Mutation(
        guard="rollback",  # of a subscription that failed
        file="gateway/subscriptions.py",
        old="if key in connection.channels:\n                self.remove(connection, key)\n            raise",
        new="raise",
        argv=fault("freeze"),
    ),
    Mutation(
        guard="frames of one client",
        file="gateway/registry.py",
        old="if limiter is not None and not limiter.take_frame():",
        new="if False:",
        argv=test("tests/unit/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="fragments count",
        file="gateway/frames.py",
        old="            self._on_fragment()\n            self._message += payload",
        new="            self._message += payload",
        argv=test("tests/unit/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="bytes per second",
        file="gateway/limiter.py",
        old="if sizes.tokens < wanted_bytes:",
        new="if False:",
        argv=test("tests/unit/test_flood.py", "test_bytes_are_limited"),
    ),
    Mutation(
        guard="share of an address",
        file="gateway/shares.py",
        old='found.append(self._find("per_ip", site_of(remote_ip), self._per_ip))',
        new="pass",
        argv=test("tests/unit/test_flood.py", "test_connecting_again_gives_no_fresh_burst"),
    ),
    Mutation(
        guard="shares remembered",
        file="gateway/shares.py",
        old="        self._remembered[key] = share\n        self._remembered.move_to_end(key)\n",
        new="",
        argv=test("tests/unit/test_shares.py", "test_a_share_is_remembered"),
    ),
    Mutation(
        guard="quota of publications",
        file="gateway/topics.py",
        old="if by is not None and (history is not None or once is not None):",
        new="if False:",
        argv=test("tests/cluster/test_stored_bytes.py", "test_anonymous_clients_of_an_address"),
    ),
    Mutation(
        guard="quota of places",
        file="gateway/primitives.py",
        old="        self._cluster.quotas.charge(connection, ENTRY_BYTES + (0 if data is None else json_size(data)))\n",
        new="",
        argv=test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="quota of names",
        file="gateway/primitives.py",
        old="        self._cluster.quotas.charge(connection, ENTRY_BYTES)\n",
        new="",
        argv=test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="await of the confirmation",
        file="gateway/subscriptions.py",
        old="        await self._broker.subscribe(key)\n",
        new="        __import__('asyncio').ensure_future(self._broker.subscribe(key))\n",
        argv=fault("freeze"),
    ),
    Mutation(
        guard="size of what is heard",
        file="gateway/fanout.py",
        old="        if len(payload) > self._payload_max_bytes:",
        new="        if False:",
        argv=test("tests/unit/test_fanout.py", "test_what_is_larger_than_anybody"),
    ),
    Mutation(
        guard="place of what is too large",
        file="gateway/fanout.py",
        old="if publication.position is not None and len(publication.payload) > self._payload_max_bytes:",
        new="if False:",
        argv=test("tests/unit/test_repair.py", "test_what_is_too_large_is_a_tombstone_for_who_recovers"),
    ),
    Mutation(
        guard="one pass after another",  # chunks of several passes take turns instead
        file="gateway/passes.py",
        old="        if passes:\n            if not was_paused:",
        new="        if passes:\n            passes.rotate(-1)\n            if not was_paused:",
        argv=test("tests/unit/test_fanout.py", "test_passes_never_overtake"),
    ),
    Mutation(
        guard="rosters after deafness",
        file="gateway/node.py",
        old="            self._presences.interrupted()\n",
        new="            pass\n",
        argv=test("tests/faults/test_presence.py", "test_who_came_and_went_while_a_node_was_cut_off_is_told_once"),
    ),
    Mutation(
        guard="a second look before somebody left",
        file="gateway/presence.py",
        old="if now_s - since_s >= self._grace_s:",
        new="if True:",
        argv=test("tests/unit/test_presences.py", "test_who_is_entered_again_within_the_grace_has_never_left"),
    ),
    Mutation(
        guard="log lines of refusals",
        file="gateway/refusals.py",
        old='        _log.info("refused"',
        new='        _log.debug("nothing"',
        argv=test("tests/unit/test_refusals.py", "leaves_a_line"),
    ),
    Mutation(
        guard="relayed payloads are no replies",
        file="gateway/topics.py",
        old="        if is_reply(payload) and",
        new="        if False and",
        argv=test("tests/unit/test_service.py", "test_relayed_payload_cannot_stand_where_a_reply_does"),
    ),
    Mutation(
        guard="direct messages are no replies",
        file="gateway/primitives.py",
        old="        if is_reply(message):",
        new="        if False:",
        argv=test("tests/unit/test_service.py", "test_relayed_payload_cannot_stand_where_a_reply_does"),
    ),
    Mutation(
        guard="hints",  # a position that a publisher told is believed
        file="gateway/publication.py",
        old="            return Publication(told.payload, hint=told.position)",
        new="            return told",
        argv=test("tests/e2e/test_deploy_redis.py", "forges"),
    ),
)
