"""Guards in what runs inside Redis: the scripts and the function library."""

from tests.fault_lab.mutations.mutation import Mutation, fault, test

__all__ = ["SCRIPTS_MUTATIONS"]

SCRIPTS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="rules of all nodes",  # otherwise a node without rules removes what the other nodes promise
        file="gateway/redis/history/lua/rules.lua",
        old="  if until_ms and tonumber(until_ms) > counted_ms then\n",
        new="  if lines[at] == ARGV[1] then\n",
        argv=fault("stray-ruleless"),
    ),
    Mutation(
        guard="positions before unstored publications",
        file="gateway/redis/history/lua/read.lua",
        old="if lost_epoch == ARGV[1] and",
        new="if false and",
        argv=test(
            "tests/contract/test_functions.py",
            "test_unstored_publications_end_earlier_positions_of_absent_clients and redis",
        ),
    ),
    Mutation(
        guard="bytes of a roster",
        file="gateway/redis/directory/lua/enter.lua",
        old="+ grown > bytes_max then",
        new="+ grown > 1e15 then",
        argv=test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="bytes of new data",
        file="gateway/redis/directory/lua/update.lua",
        old="+ grown > bytes_max then",
        new="+ grown > 1e15 then",
        argv=test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="bytes given back",
        file="gateway/redis/directory/lua/leave.lua",
        old="'b', string.format('%d', -#field - #value)",
        new="'b', '0'",
        argv=test("tests/contract/test_directory.py", "test_a_roster_is_bounded_in_bytes and redis"),
    ),
    Mutation(
        guard="pages of a roster",
        file="gateway/redis/directory/lua/census.lua",
        old="if entries > entries_max or",
        new="if false and",
        argv=test("tests/contract/test_large_rosters.py", "test_an_oversized_roster_closes_no_connection and redis"),
    ),
    Mutation(
        guard="tag check",  # without it a position is only epoch and offset
        file="gateway/redis/history/lua/read.lua",
        old="offset ~= since + 1 or fields[4] ~= tag",
        new="offset ~= since + 1",
        argv=test("tests/contract/test_history.py", "test_a_position_of_another_history_is_refused and redis"),
    ),
    Mutation(
        guard="server run of a publish",  # otherwise an older copy of a history continues under the same epoch
        file="gateway/redis/history/lua/publish.lua",
        old="    epoch = nil -- this run",
        new="    -- this run",
        argv=test(
            "tests/contract/test_history_restarts.py", "test_after_a_restart_from_an_older_copy and publish and redis"
        ),
    ),
    Mutation(
        guard="server run of a read",
        file="gateway/redis/history/lua/read.lua",
        old="  return {} -- this run",
        new="  -- this run",
        argv=test(
            "tests/contract/test_history_restarts.py", "test_after_a_restart_from_an_older_copy and read and redis"
        ),
    ),
    Mutation(
        guard="server run of a subscription",
        file="gateway/redis/history/lua/position.lua",
        old="if state[4] ~= run then",
        new="if not epoch then",
        argv=test(
            "tests/contract/test_history_restarts.py", "test_after_a_restart_from_an_older_copy and positions and redis"
        ),
    ),
    Mutation(
        guard="errors of joined scripts",
        file="gateway/redis/connection/scripts.py",
        old="  local is_done, answer = pcall(part, keys, words)\n",
        new="  local is_done, answer = true, part(keys, words)\n",
        argv=test("tests/contract/test_joined_scripts.py", "an_error_of_one_script and redis"),
    ),
    Mutation(
        guard="joined scripts when memory is short",
        file="gateway/redis/connection/scripts.py",
        old='            raise ValueError(f"{name} is not allowed when memory is short")\n',
        new="            pass\n",
        argv=test("tests/contract/test_joined_scripts.py", "only_scripts_that_need_no_memory and redis"),
    ),
    Mutation(
        guard="fencing",
        file="gateway/redis/directory/lua/renew.lua",
        old="if redis.call('EXISTS', KEYS[2]) == 1 then",
        new="if false then",
        argv=fault("stall"),
    ),
    Mutation(
        guard="compare-and-delete",
        file="gateway/redis/directory/lua/release.lua",
        old="if value and (value .. ' '):sub(1, #ARGV[at + 1] + 1) == ARGV[at + 1] .. ' ' then",
        new="if value then",
        argv=fault("kill"),
    ),
    Mutation(
        guard="idempotency",
        file="gateway/redis/history/lua/publish.lua",
        old="  if before then\n    return before\n  end",
        new="",
        argv=fault("replies"),
    ),
    Mutation(
        guard="entropy of epochs",  # like Redis' own math.random: the same after every start
        file="gateway/redis/history/lua/publish.lua",
        old="  epoch = string.format('%x', seconds) .. string.sub(entropy, 1, 16)",
        new="  epoch = string.format('%x', math.random(2147483647))",
        argv=test(
            "tests/contract/test_history_restarts.py", "test_epoch_and_tags_are_others_after_every_start_of_the_server"
        ),
    ),
    Mutation(
        guard="counter outlives its stream",
        file="gateway/redis/history/lua/publish.lua",
        old="string.format('%d', ttl_ms + step_ms + ARGV[5]))",
        new="string.format('%d', ttl_ms + step_ms))",
        argv=test("tests/contract/test_history.py", "test_the_counter_outlives_the_stored_entries"),
    ),
    Mutation(
        guard="tag of the predecessor",  # of a position whose own entry was trimmed
        file="gateway/redis/history/lua/read.lua",
        old="  if offset ~= since + 1 or fields[4] ~= tag then",
        new="  if offset ~= since + 1 then",
        argv=test("tests/contract/test_history.py", "test_size_bounds_a_history_and_trimmed_entries_are_lost"),
    ),
    Mutation(
        guard="bound of an entry",  # that is read: one large reply would end the connection that reads for all channels
        file="gateway/redis/history/lua/read.lua",
        old="#fields[6] <= payload_max_bytes and fields[6]",
        new="fields[6]",
        argv=fault("oversize"),
    ),
    Mutation(
        guard="bound of a page",  # it ends before the entry that is too large, not after it
        file="gateway/redis/history/lua/read.lua",
        old="    if bytes > max_bytes and #answer > 1 then",
        new="    if false then",
        argv=test("tests/contract/test_history.py", "test_a_reply_is_bounded"),
    ),
    Mutation(
        guard="size of a payload",  # that any client of Redis publishes
        file="gateway/redis/history/lua/library/snorky_publish.lua",
        old="    if bytes > PAYLOAD_MAX_BYTES then",
        new="    if false then",
        argv=test(
            "tests/cluster/test_channel_rules.py", "test_the_function_accepts_exactly_what_a_backend_may_publish"
        ),
    ),
    Mutation(
        guard="check for keys that have not arrived",  # of a slot that moves
        file="gateway/redis/history/lua/library/snorky_publish.lua",
        old="local met = IS_SHARDED and obstacle(own)",
        new="local met = false and obstacle(own)",
        argv=test(
            "tests/faults/test_cluster.py", "test_a_publisher_sent_on_while_a_slot_moves_begins_no_second_history"
        ),
    ),
    Mutation(
        guard="leases without memory",
        file="gateway/redis/directory/lua/renew.lua",
        old="#!lua flags=allow-oom",
        new="#!lua",
        argv=test("tests/faults/leases/test_server.py", "test_a_full_redis_refuses_joins_and_accepts_leaves"),
    ),
    Mutation(
        guard="lease without rights for the node's state",
        file="gateway/redis/directory/lua/renew.lua",
        old="    redis.pcall('SADD', KEYS[4], ARGV[4]),\n",
        new="    redis.call('SADD', KEYS[4], ARGV[4]),\n",
        argv=test("tests/unit/redis/directory/test_node_states.py", "test_a_user_without_the_rights_for_states"),
    ),
    Mutation(
        guard="lease in spite of a failing state",
        file="gateway/redis/directory/node_states.py",
        old="        except Exception as error:  # a lease must not end because of figures\n",
        new="        except OSError as error:\n",
        argv=test("tests/unit/redis/directory/test_node_states.py", "test_a_state_that_fails_costs_neither"),
    ),
    Mutation(
        guard="leases under a clock that was set back",
        file="gateway/redis/directory/lua/renew.lua",
        old="bound(KEYS[1], until_ms)\n",
        new="",
        argv=test(
            "tests/faults/leases/test_server.py",
            "test_a_node_that_died_before_the_clock_of_redis_was_set_back_is_reaped_in_time and redis",
        ),
    ),
    Mutation(
        guard="taking a token again",
        file="gateway/redis/directory/lua/take.lua",
        old="if string.sub(taken, 1, blank - 1) == ARGV[1]",
        new="if false",
        argv=test("tests/cluster/test_datasync_over_nodes.py", "test_an_acquisition_whose_answer_from_redis_was_lost"),
    ),
    Mutation(
        guard="escaped idempotency keys of the function",
        file="gateway/redis/history/lua/library/snorky_publish.lua",
        old=" .. escaped(once) or ''",
        new=" .. once or ''",
        argv=test(
            "tests/contract/test_functions.py",
            "test_an_idempotency_key_cannot_collide_with_another_channels_state and redis",
        ),
    ),
)
