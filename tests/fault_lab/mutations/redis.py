"""Guards between a node and Redis."""

from tests.fault_lab.mutations.mutation import Mutation, fault, test

__all__ = ["REDIS_MUTATIONS"]

REDIS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="a refusal behind a lost answer",
        file="gateway/redis/history/appender.py",
        old="PublishRefused(str(reply), is_repeated=is_repeated)",
        new="PublishRefused(str(reply))",
        argv=test("tests/unit/redis/history/test_appender.py", "test_a_refusal_proves_nothing"),
    ),
    Mutation(
        guard="versions on one Redis",
        file="gateway/redis/directory/versions.py",
        old="        if wire < OLDEST or oldest > WIRE:\n",
        new="        if False:\n",
        argv=test("tests/unit/redis/directory/test_node_states.py", "versions_fit_if_each"),
    ),
    Mutation(
        guard="versions in check",
        file="gateway/redis/admin/inspect_rules.py",
        old="    if foreign := foreign_nodes(nodes):\n",
        new="    if foreign := foreign_nodes([]):\n",
        argv=test("tests/cluster/test_shared_redis.py", "found_by_check"),
    ),
    Mutation(
        guard="bytes counted again",  # before a connection is refused
        file="gateway/redis/directory/directory.py",
        old="                    if await self._rosters.weigh(roster):\n                        continue\n",
        new="",
        argv=test("tests/contract/test_large_rosters.py", "test_bytes_are_recounted_before_an_entry_is_refused"),
    ),
    Mutation(
        guard="entered again of any size",
        file="gateway/redis/directory/rosters.py",
        old='            b"0" if is_again else self._max_bytes,\n',
        new="            self._max_bytes,\n",
        argv=test(
            "tests/contract/test_large_rosters.py",
            "test_entries_that_a_node_already_has_are_registered_again_whatever_their_size",
        ),
    ),
    Mutation(
        guard="version behind the pages",
        file="gateway/redis/directory/rosters.py",
        old='            if [each or b"" for each in now] == state:\n',
        new="            if True:\n",
        argv=test("tests/unit/redis/directory/test_rosters.py", "test_a_large_roster_that_changed_meanwhile"),
    ),
    Mutation(
        guard="bytes of a list of names",
        file="gateway/redis/directory/names.py",
        old="            if size > LIST_MAX_BYTES:\n",
        new="            if False:\n",
        argv=test("tests/contract/test_large_rosters.py", "test_many_names_are_listed and redis"),
    ),
    Mutation(
        guard="rights in check",
        file="gateway/redis/admin/inspect.py",
        old="        await _permitted(client, prefix, report)\n        await _check_pubsub",
        new="        await _check_pubsub",
        argv=test("tests/e2e/test_redis_rights.py", "names_each"),
    ),
    Mutation(
        guard="canary",
        file="gateway/redis/pubsub/canary.py",
        old="        elif now - self._sent_at >= self._deadline_s:\n            self._on_missing(now)\n",
        new="",
        argv=fault("half-open"),
    ),
    Mutation(
        guard="memory before it is full",
        file="gateway/redis/write_watch.py",
        old="(self.used >= bound and not self._evicts)",
        new="False",
        argv=test("tests/cluster/test_stored_bytes.py", "test_a_full_redis_makes_nodes_unready"),
    ),
    Mutation(
        guard="readiness while writes are refused",
        file="gateway/redis/write_watch.py",
        old="        self._tell_refusal(refusal)\n",
        new="",
        argv=fault("no-replicas"),
    ),
    Mutation(
        guard="refused writes",
        file="gateway/redis/write_watch.py",
        old="is_refused, refusal = any(map(_is_oom, parts)),",
        new="is_refused, refusal = False,",
        argv=test("tests/cluster/test_stored_bytes.py", "test_a_refused_write_is_enough"),
    ),
    Mutation(
        guard="check: memory of redis",
        file="gateway/redis/admin/inspect.py",
        old="    _judge_memory(info, report)\n",
        new="",
        argv=test("tests/cluster/test_stored_bytes.py", "test_check_reports_the_memory_settings_of_redis"),
    ),
    Mutation(
        guard="portion of a page",  # of history
        file="gateway/redis/history/store.py",
        old="FIRST_MAX_BYTES: Final = 131_072",
        new="FIRST_MAX_BYTES: Final = 1 << 21",
        argv=test("tests/contract/test_history.py", "test_a_reply_is_bounded"),
    ),
    Mutation(
        guard="look for a claim behind a write",
        file="gateway/redis/directory/directory.py",
        old='            if is_fenced:\n                raise BrokerUnavailable("fenced meanwhile")\n',
        new="",
        argv=test("tests/faults/leases/test_nodes.py", "test_a_write_after_the_cleanup_is_undone_by_its_writer"),
    ),
    Mutation(
        guard="watch over the primary",
        file="gateway/redis/connection/reconnect.py",
        old="if await self._target.resolved(max_age_s=WATCH_S / 2) != wire.server:",
        new="if False:",
        argv=test("tests/faults/test_sentinel.py", "test_a_cut_off_primary_that_answers_its_own_canary_is_left"),
    ),
    Mutation(
        guard="registering again with the new primary",
        file="gateway/redis/directory/directory.py",
        old="        commands.on_up = self._on_connected\n",
        new="",
        argv=test("tests/faults/leases/test_server.py", "test_a_name_of_an_older_copy_is_waited_for and redis"),
    ),
    Mutation(
        guard="strays of an older copy",
        file="gateway/redis/directory/comparison.py",
        old="strays = [each for each in read if not self._is_known(owner, each)]",
        new="strays: list[OwnedItem] = []",
        argv=test("tests/faults/leases/test_server.py", "test_after_a_restart_from_an_older_copy_rosters and redis"),
    ),
    Mutation(
        guard="indexes of living owners",  # of a shard that was rolled back alone
        file="gateway/redis/directory/reindex.py",
        old="            if calls:\n                await self._scripts.run(*calls, in_order=False)\n",
        new="",
        argv=test("tests/faults/test_shards.py", "test_former_entries_on_a_rolled_back_shard_are_removed and apart"),
    ),
    Mutation(
        guard="what redis restores during a cleanup",
        file="gateway/redis/directory/owned_index.py",
        old='                    await self._scripts.run(command(b"SADD", key, *back))\n',
        new="                    pass\n",
        argv=test("tests/faults/leases/test_reapers.py", "redis_restores_during"),
    ),
    Mutation(
        guard="owners without a lease",
        file="gateway/redis/directory/lua/adopt.lua",
        old="      redis.call('ZADD', KEYS[1], '0', owner)\n",
        new="",
        argv=test("tests/faults/test_shards.py", "test_entries_of_a_dead_node_with_a_rolled_back_lease_are_removed"),
    ),
    Mutation(
        guard="runs of all shards",  # otherwise patience with names starts after only one of them
        file="gateway/redis/directory/comparison.py",
        old="for server in self._scripts.servers())",
        new="for server in self._scripts.servers()[:1])",
        argv=test("tests/faults/test_shards.py", "run_of_each_shard_is_another"),
    ),
    Mutation(
        guard="name of the server that refuses",
        file="gateway/redis/write_watch.py",
        old='"; ".join(f"{server.url}: {server.refusal}" for server in refusing)',
        new='"; ".join(server.refusal for server in refusing)',
        argv=test("tests/faults/test_shards.py", "a_shard_that_refuses_writes"),
    ),
    Mutation(
        guard="probe of each shard",
        file="gateway/redis/write_watch.py",
        old="            for shard in cluster.shards:\n",
        new="            for shard in cluster.shards[:1]:\n",
        argv=test("tests/faults/test_shards.py", "a_shard_that_refuses_writes"),
    ),
    Mutation(
        guard="patience with names of an older copy",
        file="gateway/redis/directory/reconciler.py",
        old="if asyncio.get_running_loop().time() < self._contest_until or self._is_searching():",
        new="if False:",
        argv=test("tests/faults/leases/test_server.py", "test_a_name_of_an_older_copy_is_waited_for and redis"),
    ),
    Mutation(
        guard="a takeover that was released since",  # the loser would believe to own what anybody can claim
        file="gateway/redis/directory/reconciler.py",
        old="        if is_taken and not is_ours:\n",
        new="        if is_taken and found is not None and not is_ours:\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "name_was_taken_over_loses_it and nobody"),
    ),
    Mutation(
        guard="a takeover is not contested",
        file="gateway/redis/directory/reconciler.py",
        old="        if is_taken and not is_ours:\n",
        new="        if is_taken and found is None:\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "taken_over_is_not_contested"),
    ),
    Mutation(
        guard="no registration while a notice is pending",  # otherwise its check finds what the node has just claimed
        file="gateway/redis/directory/reconciler.py",
        old="            mine = [(name, identity) for name, identity in mine if name not in taken]\n",
        new="",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "pending_notice_is_not_registered"),
    ),
    Mutation(
        guard="no claim of contested names while a notice is pending",
        file="gateway/redis/directory/reconciler.py",
        old="            mine = [(name, identity) for name, identity in mine if name not in taken]\n",
        new="",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "pending_notice_is_not_claimed"),
    ),
    Mutation(
        guard="no repair while a notice is pending",
        file="gateway/redis/directory/reconciler.py",
        old="            mine = [(name, identity) for name, identity in mine if name not in taken]\n",
        new="",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "notice_during_the_comparison"),
    ),
    Mutation(
        guard="a notice counts before registering again",
        file="gateway/redis/directory/reconciler.py",
        old="        if is_taken and not is_ours:\n",
        new="        if is_taken and not is_ours and self._registration is None:\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "notice_counts_although"),
    ),
    Mutation(
        guard="release in the other copy",
        file="gateway/redis/directory/reconciler.py",
        old="            if self._registration is not None:  # in another copy",
        new="            if False:  # in another copy",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "notice_counts_although"),
    ),
    Mutation(
        guard="an older copy refutes no notice",
        file="gateway/redis/directory/reconciler.py",
        old="        elif self._registration is not None:\n",
        new="        elif False:\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "checked_again_if_the_answer"),
    ),
    Mutation(
        guard="names that were not registered because of a notice",
        file="gateway/redis/directory/reconciler.py",
        old="            self._contested |= taken",
        new="            pass",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "claimed_again_after_its_notice"),
    ),
    Mutation(
        guard="registered at once after a refuted notice",  # not with the next renewal
        file="gateway/redis/directory/reconciler.py",
        old="            if name in self._contested:\n",
        new="            if False:\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "claimed_again_after_its_notice"),
    ),
    Mutation(
        guard="a notice during a check",
        file="gateway/redis/directory/reconciler.py",
        old="            if self._suspects.get(name) is suspicion:",
        new="            if True:",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "arrives_during_the_check"),
    ),
    Mutation(
        guard="names that redis lost unnoticed",
        file="gateway/redis/directory/reconciler.py",
        old="        elif found is None:\n            self.on_lost_state()\n",
        new="        elif found is None:\n            pass\n",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "redis_has_lost_is_claimed_again"),
    ),
    Mutation(
        guard="a notice stays a notice",  # although an interruption suspects all names
        file="gateway/redis/directory/reconciler.py",
        old="_Suspicion(is_taken or (known is not None and known.is_taken))",
        new="_Suspicion(is_taken)",
        argv=test("tests/unit/redis/directory/test_reconciler.py", "does_not_replace_the_notice"),
    ),
    Mutation(
        guard="notices mark their names",
        file="gateway/redis/directory/directory.py",
        old="                [OwnedName(names, name, serial)], is_taken=True\n",
        new="                [OwnedName(names, name, serial)]\n",
        argv=test("tests/faults/leases/test_nodes.py", "free_or_anothers_now and redis"),
    ),
    Mutation(
        guard="a second claim that fails",
        file="gateway/presence/ownership.py",
        old="            if not is_ours:  # also if it owned the name before: another connection has it now\n",
        new="            if not is_ours and is_new:\n",
        argv=test("tests/unit/presence/test_ownership.py", "not_owned_after_a_second_claim"),
    ),
    Mutation(
        guard="sightings only by a node that can renew",
        file="gateway/redis/directory/reaper.py",
        old="if self._lease.is_failing or not self._lease.is_held:",
        new="if False:",
        argv=test("tests/faults/leases/test_server.py", "counts_no_sightings_while_it_cannot_renew and redis"),
    ),
    Mutation(
        guard="comparison with the local holdings",
        file="gateway/redis/directory/reconciler.py",
        old="                    await self._compare()\n",
        new="                    pass\n",
        argv=test("tests/faults/leases/test_server.py", "test_evicted_entries_are_registered_again and redis"),
    ),
    Mutation(
        guard="url fragment",  # the host of redis://:#secret@host was not checked
        file="gateway/redis/url.py",
        old='    if "#" in url:',
        new="    if False:",
        argv=test("tests/unit/redis/test_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="url query",
        file="gateway/redis/url.py",
        old='    if scheme != "unix" and (\n',
        new="    if False and (\n",
        argv=test("tests/unit/redis/test_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="url secret",  # the text of an error repeats no option that may be a password
        file="gateway/redis/url.py",
        old="an option is unknown for {scheme}",
        new="an option is unknown: {name} for {scheme}",
        argv=test("tests/unit/redis/test_url.py", "url_that_cannot_work"),
    ),
    Mutation(
        guard="headers of publishers",  # anything that a publisher sends is taken as a node's message
        file="gateway/redis/pubsub/heard.py",
        old="        if data[:1] != MARK or is_of_nodes:",
        new="        if True:",
        argv=test("tests/e2e/test_deploy_rights.py", "forges"),
    ),
    Mutation(
        guard="headers of publishers, in bulk",  # does not look for a header where only one name occurs
        file="gateway/redis/pubsub/heard.py",
        old=" or (not is_of_nodes and max(each) >= MARK):",
        new=":",
        argv=test("tests/unit/redis/pubsub/test_heard.py", "both_names"),
    ),
    Mutation(
        guard="order of both names",
        file="gateway/redis/pubsub/heard.py",
        old="if channel in read or (",
        new="if (",
        argv=test("tests/unit/redis/pubsub/test_heard.py", "both_names"),
    ),
    Mutation(
        guard="rosters of nodes alone",  # a publisher can write the roster of its channel
        file="gateway/redis/keys.py",
        old='    return node_channel_name(prefix, key) + b":roster"\n',
        new='    return channel_name(prefix, key) + b":roster"\n',
        argv=test("tests/unit/redis/test_keys.py", "covers"),
    ),
    Mutation(
        guard="escaped idempotency keys",  # a key can be spelled like the state of another channel
        file="gateway/redis/keys.py",
        old='once.replace("%", "%25").replace("}", "%7D").encode()',
        new="once.encode()",
        argv=test("tests/unit/redis/test_keys.py", "share"),
    ),
)
