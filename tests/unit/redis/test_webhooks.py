"""RedisWebhookLog with scripted answers of Redis: what a test on a real server cannot cause."""

from collections.abc import Sequence
from typing import Any, cast

import pytest

from snorky.gateway.errors import BrokerUnavailable
from snorky.gateway.redis.connection.commands import Commands
from snorky.gateway.redis.connection.scripts import Call, Scripts
from snorky.gateway.redis.webhooks import RedisWebhookLog

OK = [b"ok", 1, 0, 0, 1_700_000_000_000, 0]


class ScriptedScripts:
    """Records calls. answers: of the next ones, each a list."""

    def __init__(self, *answers: list[Any]) -> None:
        self.calls: list[list[Call]] = []
        self._answers = list(answers)

    async def run(self, *calls: Call) -> list[Any]:
        self.calls.append(list(calls))
        return self._answers.pop(0)


def log_with(scripts: ScriptedScripts, wanted: Sequence[str]) -> RedisWebhookLog:
    commands = cast(Commands, object())
    log = RedisWebhookLog(commands, prefix="p", app_id="shop", node_id="n1", wanted=wanted)
    log._scripts = cast(Scripts, scripts)
    return log


async def test_numbers_that_ran_before_their_exchange_are_sent_again() -> None:
    scripts = ScriptedScripts([OK, []], [OK, [0, 0, 0, 3, b"news", 2]])  # Redis knew only the second script
    log = log_with(scripts, ["=n"])
    with pytest.raises(BrokerUnavailable):
        await log.exchange([b"#2 news"])
    assert (await log.exchange([b"#2 news"])).numbers == (("news", 2),)
    first, second = ([call.arguments for call in calls] for calls in scripts.calls)
    assert first == second, "it is a repetition"


async def test_app_without_the_option_runs_one_script() -> None:
    scripts = ScriptedScripts([OK])
    await log_with(scripts, ["+o"]).exchange([b"+o news"])
    assert [call.name for call in scripts.calls[0]] == ["webhook_exchange"]
