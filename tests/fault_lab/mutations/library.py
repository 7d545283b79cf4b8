"""Guards of the function library in Redis, and of what Redis refuses to write."""

from tests.fault_lab.mutations.mutation import Mutation, fault, test

__all__ = ["LIBRARY_MUTATIONS"]

_OWN = "lines and lines_in(look.present) | {rules[0]: lines[rules[0]]}"  # the rules of this shard itself

LIBRARY_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="doubt that was not written",  # nodes of the previous format read it there
        file="gateway/redis/history/function_library.py",
        old="        finally:\n            await self._tell_doubt()\n        self._checked = text\n",
        new="        finally:\n            self._checked = text\n            await self._tell_doubt()\n",
        argv=test("tests/contract/test_function_library.py", "test_doubt_that_was_not_written and redis"),
    ),
    Mutation(
        guard="library that is asked for only",  # one that was replaced answers otherwise, or not at all
        file="gateway/redis/history/libraries.py",
        old="all(self.knows(answer) for (answer,) in answers)",
        new="True",
        argv=test("tests/contract/test_function_library.py", "test_a_library_that_is_not_ours_is_repaired and redis"),
    ),
    Mutation(
        guard="digest of the library",
        file="gateway/redis/history/library_text.py",
        old="    return told is not None and bool(end) and sha1_of(body) == told[1]\n",
        new="    return told is not None and bool(end)\n",
        argv=test("tests/contract/test_function_library.py", "edited_before_a_node and redis"),
    ),
    Mutation(
        guard="library of a later format",
        file="gateway/redis/history/libraries.py",
        old="        ours = [look for look in looks if look.found is not Found.LATER]\n",
        new="        ours = [*looks]\n",
        argv=test(
            "tests/contract/test_function_library.py", "test_a_library_of_a_later_format_is_kept_and_reported and redis"
        ),
    ),
    Mutation(
        guard="library of a sibling",  # otherwise nodes with different texts replace each other's library without end
        file="gateway/redis/history/libraries.py",
        old=" and not (look.found is Found.SIBLING and self._has_loaded)",
        new="",
        argv=test("tests/contract/test_function_library.py", "do_not_replace_each_other and redis"),
    ),
    Mutation(
        guard="looks at the library",  # otherwise a lost one is missing until the next connection
        file="gateway/redis/history/function_library.py",
        old="                async with asyncio.timeout(self._look_s):\n",
        new="                async with asyncio.timeout(None):\n",
        argv=fault("library-delete"),
    ),
    Mutation(
        guard="doubt after a foreign library",
        file="gateway/redis/history/store.py",
        old="            if doubt:\n",
        new="            if False:\n",
        argv=test("tests/contract/test_function_library.py", "just_after_another_node and redis"),
    ),
    Mutation(
        guard="library at a recovery",
        file="gateway/redis/history/store.py",
        old="if await self.functions.is_sound(asked) and doubt",
        new="if doubt",
        argv=test(
            "tests/cluster/test_shared_redis.py",
            "test_a_client_that_resumes_right_after_a_foreign_publication_gets_a_gap and older",
        ),
    ),
    Mutation(
        # otherwise a node of another prefix repairs it, and this prefix gets no notice
        guard="doubt that is in the library",
        file="gateway/redis/history/libraries.py",
        old="doubt=doubt, loaded_us",
        new="loaded_us",
        argv=test("tests/contract/test_function_library.py", "just_after_another_node and redis"),
    ),
    Mutation(
        guard="library that was missing",
        file="gateway/redis/history/libraries.py",
        old="            return known is not None\n",
        new="            return False\n",
        argv=test(
            "tests/cluster/test_shared_redis.py",
            "test_a_client_that_resumes_right_after_a_foreign_publication_gets_a_gap and flushed",
        ),
    ),
    Mutation(
        guard="library that was restored",
        file="gateway/redis/history/library_instance.py",
        old="        return self.salt != other.salt and",
        new="        return",
        argv=test(
            "tests/cluster/test_shared_redis.py",
            "test_a_client_that_resumes_right_after_a_foreign_publication_gets_a_gap and by and hand",
        ),
    ),
    Mutation(
        guard="library that was written long ago",
        file="gateway/redis/history/library_instance.py",
        old=" and -STEP_US <= self.born_us - self.loaded_us <= FRESH_US",
        new="",
        argv=test("tests/unit/redis/history/test_library_instance.py", "old_copy"),
    ),
    Mutation(
        guard="library before the load",
        file="gateway/redis/history/libraries.py",
        old=" and (before is None or not before.may_follow(look.instance))",
        new=" and False",
        argv=test(
            "tests/contract/test_function_library.py",
            "test_a_foreign_library_between_the_check_and_the_load_is_a_gap and redis",
        ),
    ),
    Mutation(
        guard="library of a node beside",  # otherwise a rolling upgrade invalidates all positions
        file="gateway/redis/history/libraries.py",
        old="(before is None or not before.may_follow(look.instance))",
        new="(before is None or not before.is_same(look.instance))",
        argv=test("tests/contract/test_function_library.py", "load_the_library_at_once and redis"),
    ),
    Mutation(
        guard="library of each primary",
        file="gateway/redis/cluster/commands.py",
        old="        return tuple(self._pipelines.values())\n",
        new="        return tuple(self._pipelines.values())[1:]\n",
        argv=test("tests/faults/test_cluster.py", "foreign_library_on_one_primary and redis"),
    ),
    Mutation(
        guard="rules on other shards",
        file="gateway/redis/history/libraries.py",
        old="_load(look, lines, doubt, is_doubtful=look in doubtful)",
        new=f"_load(look, {_OWN}, doubt, is_doubtful=look in doubtful)",
        argv=test("tests/faults/test_shard_libraries.py", "from_other_shards and FLUSH"),
    ),
    Mutation(
        guard="rules of the library loaded last",
        file="gateway/redis/history/libraries.py",
        old="        for look in sorted(looks, key=lambda look: look.instance.loaded_us if look.instance else 0):\n",
        new="        for look in looks:\n",
        argv=test("tests/faults/test_shard_libraries.py", "from_other_shards and back"),
    ),
    Mutation(
        guard="rules of all prefixes on each shard",
        file="gateway/redis/history/libraries.py",
        old="_is_sound(look, lines, doubt)",
        new=f"_is_sound(look, {_OWN}, doubt)",
        argv=test("tests/faults/test_shard_libraries.py", "from_other_shards and back"),
    ),
    Mutation(
        guard="rules that a node remembers",
        file="gateway/redis/history/libraries.py",
        old="        return self._lines.copy()\n",
        new="        lines, self._lines = self._lines, {}\n        return lines\n",
        argv=test("tests/faults/test_shard_libraries.py", "remembers_the_rules"),
    ),
    Mutation(
        guard="rules in the library before",
        file="gateway/redis/history/library_text.py",
        old=" or not has_kept(library):\n",
        new=" or not judge(library) in (Found.OURS, Found.SIBLING):\n",
        argv=test("tests/faults/test_shard_libraries.py", "an_upgrade_keeps_the_rules"),
    ),
    Mutation(
        guard="doubt of all primaries",
        file="gateway/redis/history/libraries.py",
        old="for look in looks if look.instance and look not in doubtful), default",
        new="for look in looks[:1] if look.instance and look not in doubtful), default",
        argv=test(
            "tests/faults/test_shard_libraries.py",
            "test_a_doubt_on_one_shard_is_copied_to_all_before_that_shard_is_lost",
        ),
    ),
    Mutation(
        guard="rules of other nodes in a renewal",
        file="gateway/redis/history/function_library.py",
        old="            self._on_registered(answer)\n            self._registered_at_s",
        new="            self._registered_at_s",
        argv=test("tests/contract/test_function_rules.py", "arrive_with_a_renewal and redis"),
    ),
    Mutation(
        guard="late answers of rides",
        file="gateway/redis/history/function_library.py",
        old="or call.arguments != present.arguments:",
        new="or False:",
        argv=test("tests/contract/test_function_rules.py", "arrive_with_a_renewal and redis"),
    ),
    Mutation(
        guard="rides from before a new connection",
        file="gateway/redis/history/function_library.py",
        old="        self._rode_at_s = self._registered_at_s = -math.inf\n\n",
        new="        self._registered_at_s = -math.inf\n\n",
        argv=test("tests/contract/test_function_rules.py", "from_before_new_rules and redis"),
    ),
    Mutation(
        guard="rules without rides",
        file="gateway/redis/history/function_library.py",
        old="> RIDES * self._look_s:",
        new="> 3600.0:",
        argv=test("tests/contract/test_function_rules.py", "cost_no_command and redis"),
    ),
    Mutation(
        guard="rides that failed",
        file="gateway/redis/history/function_library.py",
        old="isinstance(answer, hiredis.ReplyError) or call",
        new="call",
        argv=test("tests/contract/test_function_rules.py", "a_ride_that_failed and redis"),
    ),
    Mutation(
        guard="rights to functions",
        file="gateway/redis/history/function_library.py",
        old="return self._is_barred or self",
        new="return self",
        argv=test(
            "tests/contract/test_function_library.py",
            "test_a_node_without_the_right_to_list_functions_still_recovers and redis",
        ),
    ),
    Mutation(
        guard="what a script may have written",
        file="gateway/redis/connection/refusals.py",
        old=" and _WITHIN not in text",
        new="",
        argv=test(
            "tests/unit/connection/test_storage_quotas.py", "test_quota_is_returned_only_for_writes_that_surely_failed"
        ),
    ),
    Mutation(
        guard="library in check",
        file="gateway/redis/admin/inspect_rules.py",
        old="        report.problems.append(problem)\n",
        new="        pass\n",
        argv=test("tests/cluster/test_shared_redis.py", "check_ends_with_1"),
    ),
)
