"""Guards of the client libraries."""

from tests.fault_lab.mutations.mutation import Mutation, node_test, test

__all__ = ["CLIENTS_MUTATIONS"]

CLIENTS_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="history that is required",
        file="clients/python/snorky/client/publication.py",
        old="                if position is None and self.requires_history:\n",
        new="                if False:\n",
        argv=test("clients/python/tests/test_client_publisher.py", "test_message_that_must_be_kept_and_is_not"),
    ),
    Mutation(
        guard="silence of a gateway",  # that vanished
        file="clients/python/snorky/client/realtime/socket.py",
        old="        socket.transport.abort()",
        new="        pass",
        argv=test("tests/e2e/test_python_realtime.py", "test_gateway_that_vanished_is_noticed"),
    ),
    Mutation(
        guard="prefix of a publisher",
        file="clients/python/snorky/client/publisher.py",
        old="        if not _PREFIX(prefix):",
        new="        if False:",
        argv=test("tests/unit/redis/test_url.py", "prefix"),
    ),
    Mutation(
        guard="JS: a refusal does not end a client that was connected",
        file="clients/js/src/link.js",
        old="    if (refusal === null || !refusal.isFinal || this.#hasBeenOpen) return false;",
        new="    if (refusal === null || !refusal.isFinal) return false;",
        argv=node_test("clients/js/test/refusal.test.js"),
    ),
    Mutation(
        guard="JS: a crowd asks less and less often",
        file="clients/js/src/link.js",
        old="    else if ((this.#failures & (this.#failures - 1)) === 0) void",
        new="    else void",
        argv=node_test("clients/js/test/refusal.test.js"),
    ),
    Mutation(
        guard="JS: replies of the called service only",
        file="clients/js/src/connection.js",
        old=" || (service !== undefined && call.request.service !== service)",
        new="",
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: unguessable call ids",
        file="clients/js/src/connection.js",
        old="  #callIdPrefix = randomHex(8);",
        new='  #callIdPrefix = "0000000000000000";',
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: integers of 64 bits",
        file="clients/js/src/values.js",
        old="  if (isBeyond && ",
        new="  if (false && ",
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: lone surrogates",
        file="clients/js/src/values.js",
        old="  if (LONE_SURROGATE.test(text)) throw",
        new="  if (false) throw",
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: count of values",
        file="clients/js/src/values.js",
        old="    if (this.#seen > VALUES_MAX) throw",
        new="    if (this.#seen > 1e9) throw",
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="JS: a poison message goes alone",
        file="clients/js/src/connection.js",
        old="code === TOO_LARGE ? calls[sizes.indexOf(Math.max(...sizes))] : undefined;",
        new="undefined;",
        argv=node_test("clients/js/test/values.test.js"),
    ),
    Mutation(
        guard="refusal that cannot heal",  # a wrong URL was retried without end
        file="clients/python/snorky/client/realtime/session.py",
        old="        return not refusal.can_heal and not self._was_connected",
        new="        return False",
        argv=test("clients/python/tests/test_realtime_refused.py", "cannot_heal"),
    ),
    Mutation(
        guard="refusal of a client that was connected",
        file="clients/python/snorky/client/realtime/session.py",
        old=" and not self._was_connected",
        new="",
        argv=test("clients/python/tests/test_realtime_refused.py", "was_connected"),
    ),
    Mutation(
        guard="time of a refusal",
        file="clients/python/snorky/client/realtime/session.py",
        old="delay_s = max(delay_s, refusal.retry_after_s)",
        new="pass",
        argv=test("clients/python/tests/test_realtime_refused.py", "time_that"),
    ),
    Mutation(
        guard="threads of a fork",
        file="clients/python/snorky/client/aio/threads.py",
        old="        if self._pid != os.getpid():  #",
        new="        if False:  #",
        argv=test("clients/python/tests/test_client_fork.py", "goes_on_in_both"),
    ),
    Mutation(
        guard="realtime client of a fork",
        file="clients/python/snorky/client/realtime/client.py",
        old="        if not self.is_ours:\n            raise",
        new="        if False:\n            raise",
        argv=test("clients/python/tests/test_client_fork.py", "realtime"),
    ),
)
