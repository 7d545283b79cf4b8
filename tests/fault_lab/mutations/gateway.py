"""Guards of the node itself: connections, channels, rosters, limits."""

from tests.fault_lab.mutations.mutation import Mutation, fault, test

__all__ = ["GATEWAY_MUTATIONS"]

GATEWAY_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        # a change that the reply's list already has is not sent again if its notice arrives later
        guard="version of a list",
        file="gateway/delivery/hub.py",
        old=" and not (is_late and heard < list_version >= version)",
        new="",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py", "test_late_notices_of_members_in_the_list_are_not_sent"
        ),
    ),
    Mutation(
        guard="version of buffered changes",
        file="gateway/delivery/hub.py",
        old=" if version == 0 or version > listed]",
        new="]",
        argv=test("tests/unit/presence/test_lists_and_notices.py", "test_a_crowd_that_joins_at_once"),
    ),
    Mutation(
        guard="late notices end",  # when a clock was set back
        file="gateway/delivery/hub.py",
        old="is_late = now_s < self._late_until_s",
        new="is_late = True",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py",
            "test_a_redis_clock_that_was_set_back_suppresses_notices_only_briefly",
        ),
    ),
    Mutation(
        guard="reported as present from the start",
        file="gateway/presence/roster_view.py",
        old="        self.known = self._known(change)\n",
        new="",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py", "test_members_in_the_list_are_not_reported_as_joined_again"
        ),
    ),
    Mutation(
        guard="last seen",  # a list that lacks suspected members is followed by their `joined`
        file="gateway/presence/roster_view.py",
        old="return self._last_seen.get(place, self.version)",
        new="return self.version",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py", "test_members_in_the_list_are_not_reported_as_joined_again"
        ),
    ),
    Mutation(
        guard="arrivals of an older copy",
        file="gateway/presence/roster_view.py",
        old="        if self._run and census.run != self._run:\n",
        new="        if False:\n",
        argv=test("tests/unit/presence/test_roster_view.py", "test_a_member_only_in_an_older_copy_has_not_joined"),
    ),
    Mutation(
        guard="version of differences",
        file="gateway/delivery/hub.py",
        old="return not version <= list_version < ahead",
        new="return True",
        argv=test(
            "tests/unit/presence/test_lists_and_notices.py",
            "test_differences_are_not_sent_to_clients_whose_later_list_had_them",
        ),
    ),
    Mutation(
        guard="publications that are not kept",
        file="gateway/delivery/gap_repair.py",
        old="        followed.unkept += self._unkept.receive(key, publications)\n",
        new="",
        argv=test("tests/unit/delivery/test_unstored_publications.py", "publication_past_history_is_counted"),
    ),
    Mutation(
        guard="bytes of an inbox",
        file="gateway/connection/inbox.py",
        old=" or self._bytes >= MAX_BYTES)",
        new=")",
        argv=test("tests/unit/connection/test_inbox.py", "test_messages_that_wait_are_bounded_in_bytes_too"),
    ),
    Mutation(
        guard="shared lists of names",
        file="gateway/shared_reads.py",
        old="        task = self._next.get(key)\n",
        new="        task = None\n        return await self._read(key)\n",
        argv=test(
            "tests/unit/connection/test_waiting_replies.py", "test_those_that_ask_at_the_same_time_share_one_list"
        ),
    ),
    Mutation(
        guard="bound of waiting replies",
        file="gateway/connection/waiting_replies.py",
        old="if self.total_bytes > self._max_bytes:",
        new="if False:",
        argv=test(
            "tests/unit/connection/test_waiting_replies.py",
            "test_many_clients_that_request_lists_and_read_nothing_use_bounded_memory",
        ),
    ),
    Mutation(
        guard="size of a reply",
        file="gateway/sdk/service.py",
        old="connection.write_reply(frames)",
        new="connection.write(frames)",
        argv=test(
            "tests/unit/connection/test_waiting_replies.py",
            "test_a_list_that_no_client_could_take_is_refused_and_counted",
        ),
    ),
    Mutation(
        guard="room for a reply",  # requested before it is written
        file="gateway/connection/connection.py",
        old="        if not self.has_room(len(frame)):\n",
        new="        if False:\n",
        argv=test("tests/unit/connection/test_connection.py", "test_a_reply_counts_before_it_is_written"),
    ),
    Mutation(
        guard="rollback",  # of a subscription that failed
        file="gateway/delivery/channels.py",
        old="if key in connection.channels:\n                self.remove(connection, key)\n            raise",
        new="raise",
        argv=fault("freeze"),
    ),
    Mutation(
        guard="frames of one client",
        file="gateway/sdk/registry.py",
        old="if limiter is not None and not limiter.take_frame():",
        new="if False:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="fragments count",
        file="gateway/protocol/ws_frames.py",
        old="            self._on_fragment()\n            self._message += payload",
        new="            self._message += payload",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_frames_that_are_no_whole"),
    ),
    Mutation(
        guard="bytes per second",
        file="gateway/connection/rate_limiter.py",
        old="if sizes.tokens < wanted_bytes:",
        new="if False:",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_bytes_are_limited"),
    ),
    Mutation(
        guard="share of an address",
        file="gateway/connection/shared_limits.py",
        old='found.append(self._find("per_ip", site_of(remote_ip), self._per_ip))',
        new="pass",
        argv=test("tests/unit/http/websocket/test_flood.py", "test_reconnecting_gives_no_new_burst"),
    ),
    Mutation(
        guard="shares remembered",
        file="gateway/connection/shared_limits.py",
        old="        self._remembered[key] = share\n        self._remembered.move_to_end(key)\n",
        new="",
        argv=test(
            "tests/unit/connection/test_shared_limits.py",
            "test_a_share_outlives_its_last_connection_and_memory_is_bounded",
        ),
    ),
    Mutation(
        guard="quota of publications",
        file="gateway/sdk/topics.py",
        old="charge = None if by is None else",
        new="charge = None if True else",
        argv=test("tests/cluster/test_stored_bytes.py", "test_anonymous_clients_of_an_address"),
    ),
    Mutation(
        guard="quota of places",
        file="gateway/sdk/handles.py",
        old="        charge: Charge = self._cluster.quotas.charge(connection, size)\n",
        new="        charge = Charge(None, 0, None)\n",
        argv=test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="quota of names",
        file="gateway/sdk/handles.py",
        old="self._cluster.quotas.charge(connection, ENTRY_BYTES), True",
        new="Charge(None, 0, None), True",
        argv=test("tests/cluster/test_stored_bytes.py", "test_names_and_places_count"),
    ),
    Mutation(
        guard="await of the confirmation",
        file="gateway/delivery/channels.py",
        old="        await self._broker.subscribe(key)\n",
        new="        __import__('asyncio').ensure_future(self._broker.subscribe(key))\n",
        argv=fault("freeze"),
    ),
    Mutation(
        guard="size of received publications",
        file="gateway/delivery/fan_out.py",
        old="        if len(payload) > self._payload_max_bytes:",
        new="        if False:",
        argv=test(
            "tests/unit/delivery/test_fan_out.py",
            "test_publications_above_the_size_limit_are_dropped_and_counted_as_such",
        ),
    ),
    Mutation(
        guard="place of an oversized publication",
        file="gateway/delivery/fan_out.py",
        old="if publication.position is not None and len(publication.payload) > self._payload_max_bytes:",
        new="if False:",
        argv=test(
            "tests/unit/delivery/test_gap_repair.py",
            "test_oversized_message_is_a_tombstone_for_clients_recovering_at_that_moment",
        ),
    ),
    Mutation(
        guard="one pass after another",  # otherwise chunks of several passes alternate
        file="gateway/delivery/write_queue.py",
        old="        if passes:\n            if not was_paused:",
        new="        if passes:\n            passes.rotate(-1)\n            if not was_paused:",
        argv=test("tests/unit/delivery/test_write_queue.py", "test_passes_never_overtake"),
    ),
    Mutation(
        guard="rosters after an interruption",
        file="gateway/node.py",
        old="            self._roster_sync.interrupted()\n",
        new="            pass\n",
        argv=test("tests/faults/test_presence.py", "test_joins_and_leaves_missed_by_a_cut_off_node_are_reported_once"),
    ),
    Mutation(
        guard="a list of an older copy that was read long ago",
        file="gateway/presence/roster_view.py",
        old="self._census_s < self._older_until_s",
        new="now_s < self._older_until_s",
        argv=test("tests/unit/presence/test_roster_view.py", "that_was_read_long_ago"),
    ),
    Mutation(
        guard="a list of members that was read long ago",
        file="gateway/presence/roster_view.py",
        old="if self._census_s - since_s >= self._grace_s:",
        new="if now_s - since_s >= self._grace_s:",
        argv=test("tests/unit/presence/test_roster_view_model.py", "test_no_present_member"),
    ),
    Mutation(
        guard="a second look before somebody left",
        file="gateway/presence/roster_view.py",
        old="if self._census_s - since_s >= self._grace_s:",
        new="if True:",
        argv=test(
            "tests/unit/presence/test_roster_sync.py", "test_members_entered_again_within_the_grace_period_never_left"
        ),
    ),
    Mutation(
        guard="log lines of refusals",
        file="gateway/connection/refusals.py",
        old='        _log.info("refused"',
        new='        _log.debug("nothing"',
        argv=test("tests/unit/connection/test_refusals.py", "leaves_a_line"),
    ),
    Mutation(
        guard="relayed payloads are no replies",
        file="gateway/sdk/topics.py",
        old="        if is_reply(value) and",
        new="        if False and",
        argv=test("tests/unit/sdk/test_service.py", "test_relayed_payload_cannot_be_read_as_a_reply"),
    ),
    Mutation(
        guard="direct messages are no replies",
        file="gateway/sdk/handles.py",
        old="        if is_reply(message):",
        new="        if False:",
        argv=test("tests/unit/sdk/test_service.py", "test_relayed_payload_cannot_be_read_as_a_reply"),
    ),
    Mutation(
        guard="hints",  # the node believes a position that a publisher sent
        file="gateway/protocol/publication.py",
        old="            return Publication(decoded.payload, hint=decoded.position)",
        new="            return decoded",
        argv=test("tests/e2e/test_deploy_rights.py", "forges"),
    ),
    Mutation(
        guard="what is not kept while a client recovers",
        file="gateway/delivery/gap_repair.py",
        old="is_noted and unkept == followed.unkept",
        new="is_noted",
        argv=test("tests/unit/delivery/test_unstored_publications.py", "while_clients_recover"),
    ),
    Mutation(
        guard="what is not noted yet",
        file="gateway/delivery/gap_repair.py",
        old="is_noted and unkept == followed.unkept",
        new="unkept == followed.unkept",
        argv=test(
            "tests/unit/delivery/test_unstored_publications.py",
            "test_client_that_resumes_before_an_unstored_publication_is_noticed_gets_a_gap",
        ),
    ),
    Mutation(
        guard="reads shared across unstored publications",
        file="gateway/delivery/gap_repair.py",
        old="        wanted = since, followed.unkept\n",
        new="        wanted = since, 0\n",
        argv=test("tests/unit/delivery/test_unstored_publications.py", "shares_no_earlier_read"),
    ),
    Mutation(
        guard="quota of refused messages",
        file="gateway/sdk/topics.py",
        old="            published.add_done_callback(charge.settle)\n",
        new="            pass\n",
        argv=test(
            "tests/cluster/test_stored_bytes.py", "test_quota_of_writes_refused_by_redis_is_returned and message"
        ),
    ),
    Mutation(
        guard="quota of a place that was refused",
        file="gateway/sdk/handles.py",
        old="            if not was_stored(error):\n",
        new="            if False:\n",
        argv=test("tests/cluster/test_stored_bytes.py", "test_quota_of_writes_refused_by_redis_is_returned and place"),
    ),
    Mutation(
        guard="quota of a name that was refused",
        file="gateway/sdk/handles.py",
        old="            if not is_stored:\n",
        new="            if False:\n",
        argv=test("tests/cluster/test_stored_bytes.py", "test_quota_of_writes_refused_by_redis_is_returned and name"),
    ),
    Mutation(
        guard="new name of a module",
        file="gateway/sdk/loading.py",
        old="    if renamed := new_name(module_name, name):\n",
        new="    if renamed := '':\n",
        argv=test("tests/unit/sdk/test_old_names.py", "test_old_name"),
    ),
    Mutation(
        guard="a shop's module of an old name",
        file="gateway/sdk/old_names.py",
        old="    return None if is_theirs and hasattr(importlib.import_module(module), attribute) else",
        new="    return None if False else",
        argv=test("tests/unit/sdk/test_old_names.py", "test_shop_has_modules"),
    ),
    Mutation(
        guard="our module under an old name",  # found by accident in a checkout
        file="gateway/sdk/old_names.py",
        old="theirs is not None and not _is_same(ours, theirs)",
        new="theirs is not None",
        argv=test("tests/unit/sdk/test_old_names.py", "test_old_name_of_ours"),
    ),
    Mutation(
        guard="subscription token as a login",
        file="gateway/auth/tokens.py",
        old='        if "channel" in claims:',
        new="        if False:",
        argv=test("tests/unit/auth/test_tokens.py", "test_an_attack_is_refused"),
    ),
    Mutation(
        guard="claims of a minted token",
        file="gateway/auth/minting.py",
        old="            if name in _RESERVED or name == self._auth.identity_claim:\n",
        new="            if False:\n",
        argv=test("tests/unit/auth/test_minting.py", "test_what_nodes_would_refuse"),
    ),
    Mutation(
        guard="lifetime of a minted token",
        file="gateway/auth/minting.py",
        old="        if not 1 <= expires_in_s <= longest_s:\n",
        new="        if False:\n",
        argv=test("tests/unit/auth/test_minting.py", "test_what_nodes_would_refuse"),
    ),
    Mutation(
        guard="size of a minted token",
        file="gateway/auth/minting.py",
        old="        if len(token) > TOKEN_MAX_BYTES:\n",
        new="        if False:\n",
        argv=test("tests/unit/auth/test_minting.py", "test_what_nodes_would_refuse"),
    ),
    Mutation(
        guard="private key of other nodes",
        file="gateway/runtime/commands/token.py",
        old="    if public_keys and key.public_key not in public_keys:\n",
        new="    if False:\n",
        argv=test("tests/unit/runtime/test_token.py", "test_problem_is_a_sentence"),
    ),
)
