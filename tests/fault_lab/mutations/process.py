"""Guards of settings and of the process that runs a node."""

from functools import partial

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["PROCESS_MUTATIONS"]

_RELOAD = partial(test, "tests/unit/runtime/test_reload.py")

PROCESS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="strength of secrets",
        file="gateway/config/secrets.py",
        old="    if bits < min_bits or len(steps) == 1:",
        new="    if False:",
        argv=test("tests/unit/config/test_secrets.py", "test_a_secret_that_can_be_guessed_is_refused"),
    ),
    Mutation(
        guard="invisible characters",
        file="gateway/config/settings.py",
        old="                    check_visible(text)",
        new="                    pass",
        argv=test("tests/unit/config/test_secrets.py", "test_an_invisible_character_in_a_secret"),
    ),
    Mutation(
        guard="line ends of secret files",
        file="gateway/config/secrets.py",
        old="""    return text.removeprefix("\\ufeff").rstrip("\\r\\n")""",
        new="    return text",
        argv=test("tests/unit/config/test_secrets.py", "test_line_ends_and_a_byte_order_mark_of_a_file"),
    ),
    Mutation(
        guard="variables near a setting",
        file="gateway/config/settings.py",
        old="        elif near:\n",
        new="        elif False:\n",
        argv=test("tests/unit/config/test_secrets.py", "test_a_variable_near_a_setting_is_an_error"),
    ),
    Mutation(
        guard="origins that can never match",
        file="gateway/config/origins.py",
        old="    if not _NAME.fullmatch(name):",
        new="    if False:",
        argv=test("tests/unit/config/test_origins.py", "test_an_entry_that_can_never_match_is_refused"),
    ),
    Mutation(
        guard="ready line",  # a SIGTERM immediately after /readyz answered 200
        file="gateway/runtime/process.py",
        old="        if gateway.node.is_ready:  #",
        new="        if False:  #",
        argv=test("tests/cluster/test_start_stop.py", "between and not workers"),
    ),
    Mutation(
        guard="clock of samples",  # rates were divided by the time between two samples
        file="gateway/runtime/commands/stats.py",
        old='if "sampled_s" in node.state else seen_s',
        new='if "" in node.state else seen_s',
        argv=test("tests/unit/runtime/test_stats.py", "divided_by_the_time"),
    ),
    Mutation(
        guard="sentence of run",
        file="gateway/runtime/process.py",
        old="    except ConfigurationError as error:",
        new="    except ZeroDivisionError as error:",
        argv=test("tests/e2e/test_examples.py", "program_of_ones_own"),
    ),
    Mutation(
        guard="rights after other rules",
        file="gateway/sdk/refreshing.py",
        old="        recheck(connection)\n        if count",
        new="        if count",
        argv=_RELOAD("removed_right"),
    ),
    Mutation(
        guard="turns of the loop while rights are looked at again",
        file="gateway/sdk/refreshing.py",
        old="if count % RECHECKED_PER_TURN == 0 or perf_counter() - began_s > RECHECK_TURN_S:",
        new="if False:",
        argv=_RELOAD("thousand_connections"),
    ),
    Mutation(
        guard="roster entries of a rule that had presence",
        file="services/pubsub/service.py",
        old="            self.rosters.leave_soon(request.connection, channel)",
        new="            pass",
        argv=_RELOAD("leaves_no_entry"),
    ),
    Mutation(
        guard="options that need a restart",
        file="gateway/runtime/reload.py",
        old="applied = [option for option in options if option in known]",
        new="applied = options",
        argv=_RELOAD("needs_a_restart"),
    ),
    Mutation(
        guard="identities known to other rules",
        file="gateway/sdk/service.py",
        old="        other.set_authenticating(is_authenticating=self._is_authenticating)\n",
        new="",
        argv=_RELOAD("stays_closed"),
    ),
    Mutation(
        guard="histories that a rule has lost",
        file="gateway/redis/history/function_library.py",
        old="            self._own_digest = self._digest()  # `promised`",
        new="            pass  # `promised`",
        argv=test("tests/cluster/test_channel_rules.py", "history_of_a_rule and redis"),
    ),
    Mutation(
        guard="a closed terminal",
        file="gateway/runtime/stop_signals.py",
        old=" and not self._has_lost_terminal():",
        new=":",
        argv=test("tests/unit/runtime/test_stop_signals.py", "until_the_terminal"),
    ),
    Mutation(
        guard="SIGHUP to a worker that starts",
        file="gateway/runtime/supervisor.py",
        old=" and door.path.exists():",
        new=":",
        argv=test("tests/cluster/test_reload.py", "worker_that_starts"),
    ),
    Mutation(
        guard="SIGHUP to a worker that is being created",
        file="gateway/runtime/supervisor.py",
        old="self._to_reload.update(self._doors)",
        new="self._to_reload.update(self._processes)",
        argv=test("tests/unit/runtime/test_supervisor.py", "being_created"),
    ),
    Mutation(
        guard="hashes of the image's packages",
        file="Dockerfile",
        old="--require-hashes -r deploy/requirements.txt",
        new="-r deploy/requirements.txt",
        argv=test("tests/e2e/test_deploy_lock.py", "every_installation"),
    ),
)
