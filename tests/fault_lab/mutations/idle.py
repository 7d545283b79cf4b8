"""Guards of the commands that a node without clients sends to Redis seldom, or joined with others."""

from tests.fault_lab.mutations.mutation import Mutation, test

__all__ = ["IDLE_MUTATIONS"]

IDLE_MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        guard="look when a lease ends",
        file="gateway/redis/directory/reaper.py",
        old="                self._next_end = min(self._next_end, now - ended_ms / 1000)\n",
        new="",
        argv=test("tests/unit/redis/directory/test_reaper.py", "looks_when_a_lease_ends"),
    ),
    Mutation(
        guard="look when a sweep is due",
        file="gateway/redis/directory/reaper.py",
        old="                self._next_end = min(self._next_end, now - late_ms / 1000)\n",
        new="                pass\n",
        argv=test("tests/unit/redis/directory/test_reaper.py", "looks_when_a_lease_ends"),
    ),
    Mutation(
        guard="age of a renewal's answer",
        file="gateway/redis/directory/reaper.py",
        old="        now = present.at\n",
        new="        now = asyncio.get_running_loop().time()\n",
        argv=test("tests/unit/redis/directory/test_reaper.py", "does_not_get_younger"),
    ),
    Mutation(
        guard="scripts that ride on a renewal",
        file="gateway/redis/directory/lease.py",
        old="        for (rider, call), answer in zip(rides, answers, strict=True):\n",
        new="        for (rider, call), answer in ():\n",
        argv=test("tests/cluster/test_directory_cost.py", "an_idle_directory"),
    ),
    Mutation(
        guard="revocations that a login reads first",
        file="gateway/redis/revocations.py",
        old="        if self._task is None or self._is_idle:\n",
        new="        if self._task is None:\n",
        argv=test("tests/contract/test_revocations.py", "a_login_first_reads"),
    ),
    Mutation(
        guard="a login waits for the read",
        file="gateway/redis/revocations.py",
        old="            await self._read(watcher)\n            self._is_idle = False  # not before",
        new="            self._is_idle = False\n            await self._read(watcher)  # not before",
        argv=test("tests/contract/test_revocations.py", "a_login_meanwhile_waits"),
    ),
    Mutation(
        guard="a login reads again after an error",
        file="gateway/redis/revocations.py",
        old="            await self._read(watcher)\n            self._is_idle = False  # not before",
        new="            self._is_idle = False\n            await self._read(watcher)  # not before",
        argv=test("tests/contract/test_revocations.py", "the_next_login_reads_again"),
    ),
    Mutation(
        guard="one read for all logins",
        file="gateway/redis/revocations.py",
        old="if self._beginning is None or self._beginning.done():",
        new="if True:",
        argv=test("tests/contract/test_revocations.py", "a_login_first_reads"),
    ),
    Mutation(
        guard="a read that a cancelled login leaves to others",
        file="gateway/redis/revocations.py",
        old="await asyncio.shield(beginning)",
        new="await beginning",
        argv=test("tests/contract/test_revocations.py", "leaves_the_read_to_the_others"),
    ),
    Mutation(
        guard="a login that waits while the node stops",
        file="gateway/redis/revocations.py",
        old="            if beginning.cancelled() and task is not None and not task.cancelling():\n",
        new="            if False:\n",
        argv=test("tests/contract/test_revocations.py", "while_the_node_stops_fails"),
    ),
    Mutation(
        guard="end of the wait without clients",
        file="gateway/node.py",
        old="        self._auth.revocations.hurry()\n",
        new="",
        argv=test("tests/unit/auth/test_revocation.py", "whether_a_node_has_clients"),
    ),
    Mutation(
        guard="revocations for a login without a connection",
        file="gateway/auth/sessions.py",
        old="bool(self._by_name) or next(",
        new="next(",
        argv=test("tests/unit/auth/test_revocation.py", "whether_a_node_has_clients"),
    ),
    Mutation(
        guard="probe that Redis has forgotten",
        file="gateway/redis/write_watch.py",
        old="refusal_of(answer) is Refusal.NO_SCRIPT:",
        new="False:",
        argv=test("tests/contract/test_write_watch.py", "test_a_probe_is_one_command"),
    ),
    Mutation(
        guard="right to send a script in full",
        file="gateway/redis/write_watch.py",
        old="    missing = 'NOPERM to run ' .. words[1]\n",
        new="",
        argv=test("tests/contract/test_write_watch.py", "test_a_missing_right_is_a_refusal_until_it_is_granted"),
    ),
    Mutation(
        guard="entries that an idle node reads later from another Redis",
        file="gateway/redis/multi/revocations.py",
        old="SAME_S: Final = 15.0",
        new="SAME_S: Final = 5.0",
        argv=test("tests/unit/redis/multi/test_revocations.py", "is_reported_once"),
    ),
    Mutation(
        guard="renewal without a script that could not be made",
        file="gateway/redis/directory/lease.py",
        old="            except Exception as error:  # the lease must be renewed\n",
        new="            except ZeroDivisionError as error:\n",
        argv=test("tests/unit/redis/directory/test_lease.py", "a_rider_that_fails"),
    ),
    Mutation(
        guard="probe of a server that became a replica",
        file="gateway/redis/write_watch.py",
        old="                self.commands.on_refused(part)",
        new="                pass",
        argv=test("tests/contract/test_write_watch.py", "became_a_replica"),
    ),
)
