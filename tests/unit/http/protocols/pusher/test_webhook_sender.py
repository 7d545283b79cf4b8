"""AppWebhooks with a scripted log and backend: nothing is lost, reordered, or dropped without a count."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from itertools import pairwise

from structlog.testing import capture_logs

from snorky.gateway.config.pusher import WEBHOOK_EVENTS, PusherApp
from snorky.gateway.contracts.webhooks import Exchanged, QueuedEvent
from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.http.protocols.pusher.webhook_sender import AppWebhooks, Pace
from snorky.gateway.metrics import Metrics

APP = PusherApp(
    id="shop", key="k", secret="s", webhook_url="https://backend.example/hook", webhook_events=WEBHOOK_EVENTS
)
FAST = Pace(renew_s=0.01, retry_s=0.01, first_pause_s=0.01, pause_max_s=0.02, stop_s=0.5)
WITHIN_S = 30.0


class ScriptedLog:
    """Records exchanges. answers: of the next exchanges; then all are "ok". An exception is raised."""

    def __init__(self) -> None:
        self.is_sender = True
        self.may_send: set[bool] = set()  # what the exchanges said
        self.answers: list[Exchanged | Exception] = []
        self.exchanges: list[list[bytes]] = []  # those that have changes
        self.resets: list[list[bytes]] = []
        self.queue: list[QueuedEvent] = []
        self.known: list[str] = []
        self.has_resigned = self.is_stopped = False
        self.is_failing = False
        self.rounds = self.reads = self.failures = 0  # exchanges; calls of head; calls that failed

    def start(self, on_up: Callable[[], None]) -> None:
        on_up()

    async def stop(self) -> None:
        self.is_stopped = True

    async def exchange(self, changes: Sequence[bytes], *, is_reset: bool = False) -> Exchanged:
        self.rounds += 1
        self.may_send.add(b"!" in changes)
        changes = [each for each in changes if each != b"!"]
        await self._answer()
        if is_reset:
            self.resets.append(changes)
            return Exchanged("ok")
        if changes:
            self.exchanges.append(changes)
            if self.answers:
                answer = self.answers.pop(0)
                if isinstance(answer, Exception):
                    raise answer
                return answer
        return Exchanged("ok", len(self.queue))

    async def held(self) -> list[str]:
        return self.known

    async def head(self, events_max: int) -> list[QueuedEvent]:
        self.reads += 1
        await self._answer()
        return self.queue[:events_max]

    async def sent(self, last_id: str) -> int:
        await self._answer()
        ids = [each.id for each in self.queue]
        del self.queue[: ids.index(last_id) + 1 if last_id in ids else 0]
        return len(self.queue)

    async def resign(self) -> None:
        self.has_resigned = True

    async def some_rounds(self) -> None:
        """Wait for exchanges that begin from now on."""
        last = self.rounds + 3
        await until(lambda: self.rounds > last)

    async def _answer(self) -> None:
        await asyncio.sleep(0)
        if self.is_failing:
            self.failures += 1
            raise BrokerUnavailable("scripted")


class Backend:
    """Records requests. faults: answers to the next ones; then all are accepted."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.faults: list[str | None] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.on_post: Callable[[], None] = lambda: None

    async def post(self, url: str, body: bytes, headers: Mapping[str, str]) -> str | None:
        assert url == APP.webhook_url and headers["X-Pusher-Key"] == "k"
        self.bodies.append(body)
        self.on_post()
        await self.may_answer.wait()
        return self.faults.pop(0) if self.faults else None


class Stage:
    def __init__(self, pace: Pace = FAST, app: PusherApp = APP) -> None:
        self.log, self.backend, self.metrics = ScriptedLog(), Backend(), Metrics()
        self.webhooks = AppWebhooks(app, self.log, self.backend.post, self.metrics, pace=pace)

    def count(self, name: str, outcome: str) -> float:
        return self.metrics.registry.get_sample_value(f"snorky_webhook_{name}_total", {"outcome": outcome}) or 0


@asynccontextmanager
async def stage(pace: Pace = FAST, app: PusherApp = APP) -> AsyncIterator[Stage]:
    made = Stage(pace, app)
    try:
        yield made
    finally:
        await made.webhooks.stop()


async def until(is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not is_so():  # noqa: ASYNC110 - of tasks that cannot be awaited
            await asyncio.sleep(0.002)


def event(number: int, *, age_s: float = 0.0) -> QueuedEvent:
    return QueuedEvent(f"{number}-0", f"+o c{number}".encode(), number, age_s)


async def test_channel_is_claimed_before_its_first_member_and_released_after_its_last() -> None:
    async with stage() as made:
        webhooks = made.webhooks
        webhooks.member_changed("presence-a", "ann", ("n.1", ""), is_there=True)  # a client enters before it subscribes
        webhooks.channel_changed("presence-a", is_occupied=True)
        webhooks.member_changed("presence-a", "ann", ("n.2", ""), is_there=True)
        webhooks.start()
        await until(lambda: made.log.exchanges)
        webhooks.channel_changed("presence-a", is_occupied=False)  # and unsubscribes before it leaves
        webhooks.member_changed("presence-a", "ann", ("n.1", ""), is_there=False)
        await made.log.some_rounds()
        assert made.log.exchanges == [[b"+o presence-a", b"+m presence-a ann"]]
        webhooks.member_changed("presence-a", "ann", ("n.2", ""), is_there=False)
        await until(lambda: len(made.log.exchanges) == 2)
        assert made.log.exchanges[1] == [b"-m presence-a ann", b"-o presence-a"]


async def test_members_of_other_channels_are_none_of_the_protocol() -> None:
    async with stage() as made:
        made.webhooks.member_changed("news", "ann", ("n.1", ""), is_there=True)
        made.webhooks.channel_changed("news", is_occupied=True)
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        assert made.log.exchanges == [[b"+o news"]]


async def test_nothing_is_claimed_that_makes_no_event() -> None:
    async with stage(app=replace(APP, webhook_events=("cache_miss",))) as made:
        made.webhooks.channel_changed("presence-a", is_occupied=True)
        made.webhooks.member_changed("presence-a", "ann", ("n.1", ""), is_there=True)
        made.webhooks.report({"name": "cache_miss"})
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        assert made.log.exchanges == [[b'{"name":"cache_miss"}']]


async def test_exchange_of_unknown_outcome_is_repeated_unchanged() -> None:
    async with stage() as made:
        made.log.answers = [BrokerUnavailable("no answer"), BrokerUnavailable("no answer")]
        made.webhooks.channel_changed("a", is_occupied=True)
        made.webhooks.report({"name": "cache_miss"})
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        made.webhooks.channel_changed("b", is_occupied=True)
        made.webhooks.channel_changed("a", is_occupied=False)
        await until(lambda: len(made.log.exchanges) == 4)
        first = [b"+o a", b'{"name":"cache_miss"}']
        assert made.log.exchanges == [first, first, first, [b"+o b", b"-o a"]]


async def test_fenced_node_claims_all_again_and_keeps_its_reports() -> None:
    async with stage() as made:
        made.webhooks.channel_changed("a", is_occupied=True)
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        made.log.answers = [Exchanged("fenced")]
        made.webhooks.report({"name": "cache_miss"})
        await until(lambda: len(made.log.exchanges) == 3)
        assert made.log.exchanges[2] == [b"+o a", b'{"name":"cache_miss"}']


async def test_lost_state_is_restored_without_events_and_what_ended_meanwhile_is_released() -> None:
    async with stage() as made:
        for name in ("a", "b", "c"):
            made.webhooks.channel_changed(name, is_occupied=True)
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        made.log.answers, made.log.known = [Exchanged("lost")], ["o a", "o stray"]
        made.webhooks.channel_changed("b", is_occupied=False)
        await until(lambda: len(made.log.exchanges) == 3)
        assert made.log.resets == [[b"=o b", b"=o c"]]
        assert sorted(made.log.exchanges[2]) == [b"-o b", b"-o stray"]


async def test_reports_that_wait_for_redis_are_bounded_and_the_rest_is_counted() -> None:
    async with stage() as made:
        with capture_logs() as logs:
            for _ in range(1_500):
                made.webhooks.report({"name": "cache_miss"})
        assert made.count("events", "busy") == 500
        assert [each["event"] for each in logs] == ["webhook events dropped"]
        made.webhooks.start()
        await until(lambda: sum(map(len, made.log.exchanges)) == 1_000)


async def test_events_that_the_queue_has_no_place_for_are_counted() -> None:
    async with stage() as made:
        made.log.answers = [Exchanged("ok", 0, 3)]
        made.webhooks.channel_changed("a", is_occupied=True)
        made.webhooks.start()
        await until(lambda: made.count("events", "full") == 3)


async def test_request_that_fails_is_repeated_before_any_other() -> None:
    async with stage() as made:
        made.backend.faults = ["status 500", "TimeoutError"]
        made.log.queue = [event(1), event(2)]
        made.webhooks.start()
        await until(lambda: not made.log.queue)
        assert made.backend.bodies == [made.backend.bodies[0]] * 3
        assert made.backend.bodies[0].startswith(b'{"time_ms":2,')
        assert (made.count("requests", "failed"), made.count("requests", "ok")) == (2, 1)
        assert made.count("events", "sent") == 2


async def test_time_of_a_request_is_that_of_its_first_attempt_by_the_clock_of_redis() -> None:
    async with stage() as made:
        made.backend.faults = ["status 500"]
        made.log.queue = [event(1, age_s=7.0), event(2, age_s=5.0)]
        made.webhooks.start()
        await until(lambda: made.count("requests", "failed"))
        made.log.queue.append(event(3))
        await until(lambda: not made.log.queue)
        made.log.queue = [event(10_000)]
        await until(lambda: not made.log.queue)
        times = [json.loads(body)["time_ms"] for body in made.backend.bodies]
        assert times[:2] == [5_002, 5_002] and times[-1] == 10_000


async def test_pauses_between_requests_that_fail_grow() -> None:
    async with stage(replace(FAST, first_pause_s=0.02, pause_max_s=0.2)) as made:
        times: list[float] = []
        made.backend.on_post = lambda: times.append(asyncio.get_running_loop().time())
        made.backend.faults = ["status 500"] * 5
        made.log.queue = [event(1)]
        made.webhooks.start()
        await until(lambda: not made.log.queue)
        pauses = [after - before for before, after in pairwise(times)]
        assert len(pauses) == 5
        for pause_s, least_s in zip(pauses, (0.02, 0.04, 0.08, 0.16, 0.2), strict=True):
            assert pause_s > least_s * 0.9


async def test_accepted_events_are_not_sent_again_because_redis_did_not_answer() -> None:
    async with stage() as made:
        made.log.queue = [event(1)]

        def fail() -> None:
            made.log.is_failing = True

        made.backend.on_post = fail
        made.webhooks.start()
        await until(lambda: made.count("events", "sent"))
        await until(lambda: made.log.failures > 5)
        made.log.is_failing = False
        await until(lambda: not made.log.queue)
        assert len(made.backend.bodies) == 1


async def test_node_that_is_not_the_sender_sends_nothing() -> None:
    async with stage() as made:
        made.log.is_sender = False
        made.log.queue = [event(1)]
        made.webhooks.start()
        made.webhooks.report({"name": "cache_miss"})
        await until(lambda: made.log.exchanges)
        await made.log.some_rounds()
        assert not made.backend.bodies
        made.log.is_sender = True
        await until(lambda: made.backend.bodies)


async def test_node_that_is_not_the_sender_any_more_does_not_repeat_its_request() -> None:
    async with stage() as made:

        def lose() -> None:
            made.log.is_sender = False
            made.log.queue = [event(1, age_s=400.0)]

        made.backend.on_post = lose
        made.backend.faults = ["status 500"]
        made.log.queue = [event(1)]
        made.webhooks.start()
        await until(lambda: made.count("requests", "failed"))
        await made.log.some_rounds()
        await made.log.some_rounds()
        assert made.log.reads == len(made.backend.bodies) == len(made.log.queue) == 1


async def test_stop_waits_for_the_request_in_progress_and_releases_everything() -> None:
    async with stage() as made:
        made.webhooks.channel_changed("a", is_occupied=True)
        made.webhooks.start()
        await until(lambda: made.log.exchanges)
        made.backend.may_answer.clear()
        made.log.queue = [event(1)]
        await until(lambda: made.backend.bodies)
        made.webhooks.channel_changed("a", is_occupied=False)
        stopping = asyncio.create_task(made.webhooks.stop())
        await made.log.some_rounds()
        assert not stopping.done()
        made.backend.may_answer.set()
        await stopping
        assert made.log.queue == [] and made.log.exchanges[-1] == [b"-o a"]
        assert made.log.has_resigned and made.log.is_stopped


async def test_stop_ends_although_neither_redis_nor_the_backend_answers() -> None:
    async with stage(replace(FAST, stop_s=0.1)) as made:
        made.webhooks.start()
        made.backend.may_answer.clear()
        made.log.queue = [event(1)]
        await until(lambda: made.backend.bodies)
        made.log.is_failing = True
        made.webhooks.report({"name": "cache_miss"})
        async with asyncio.timeout(WITHIN_S):
            await made.webhooks.stop()
        assert made.log.is_stopped and made.count("events", "stopped") == 1


async def test_node_whose_lease_ends_while_it_reads_the_queue_sends_nothing() -> None:
    async with stage() as made:
        log, read = made.log, made.log.head

        async def read_late(events_max: int) -> list[QueuedEvent]:
            found = await read(events_max)
            log.is_sender = False
            return found

        log.head = read_late  # type: ignore[method-assign]
        log.queue = [event(1)]
        made.webhooks.start()
        await until(lambda: not log.is_sender)
        await log.some_rounds()
        assert made.backend.bodies == [] and log.queue == [event(1)]


async def test_old_events_that_another_node_sends_are_not_counted_as_dropped() -> None:
    async with stage() as made:
        log = made.log

        async def taken_over(last_id: str) -> int:
            log.is_sender = False
            return 0

        log.sent = taken_over  # type: ignore[method-assign]
        log.queue = [event(1, age_s=400.0)]
        made.webhooks.start()
        await until(lambda: not log.is_sender)
        await log.some_rounds()
        assert made.backend.bodies == [] and made.count("events", "expired") == 0


async def test_stop_tells_redis_what_the_backend_has_accepted() -> None:
    async with stage(replace(FAST, retry_s=60.0)) as made:
        log = made.log
        log.queue = [event(1)]

        def fail() -> None:
            log.is_failing = True

        made.backend.on_post = fail
        made.webhooks.start()
        await until(lambda: made.count("events", "sent") == 1 and log.failures)
        log.is_failing = False
        await made.webhooks.stop()
        assert log.queue == [] and log.has_resigned
