"""`snorky check`: the memory that limits allow at worst."""

from pathlib import Path
from typing import Any

import pytest

from snorky.gateway.config.rules.channel_rules import Rules
from snorky.gateway.config.settings import Limits
from snorky.gateway.runtime.commands import check, memory
from snorky.gateway.runtime.commands.memory import machine_bytes, node_worst, redis_worst, written
from tests.support.scenarios.command_line import snorky

SMALL = {
    "SNORKY_LIMITS__CONNECTIONS": "100",
    "SNORKY_LIMITS__CHANNELS_PER_CONNECTION": "10",
    "SNORKY_LIMITS__OUTBOX_MAX_BYTES": "100000",
}


def test_every_limit_of_a_connection_counts_for_each_connection() -> None:
    limits = Limits(connections=100)
    before = node_worst(limits).parts
    for other, part in (
        (Limits(connections=100, outbox_max_bytes=limits.outbox_max_bytes + 1), "data that clients do not read"),
        (Limits(connections=100, message_max_bytes=limits.message_max_bytes + 1), "messages of clients"),
        (Limits(connections=100, send_buffer_bytes=limits.send_buffer_bytes + 1), "send buffers of the kernel"),
        (Limits(connections=100, channels_per_connection=1001), "subscriptions"),
    ):
        after = node_worst(other).parts
        assert [name for name in after if after[name] != before[name]] == [part]
        assert after[part] - before[part] >= 100
    assert node_worst(limits).total == sum(before.values()) and not node_worst(limits).unbounded


def test_what_no_limit_bounds_is_said() -> None:
    assert node_worst(Limits(connections=0)).unbounded == ["connections ([limits] connections = 0)"]
    assert "send buffers of the kernel" in node_worst(Limits(send_buffer_bytes=0)).unbounded[0]


def test_histories_are_bounded_where_channels_are() -> None:
    rules = Rules.read([{"match": "news", "history": 10}, {"match": "chat:*", "history": 10}, {"match": "*"}])
    worst = redis_worst(Limits(), {"pubsub": rules})
    assert list(worst.parts) == ["history of pubsub: news"]
    assert 10 << 20 < worst.total < 11 << 20
    assert worst.unbounded[0].startswith("channels of pubsub like chat:*: up to ")
    assert redis_worst(Limits(), {"pubsub": Rules.read([{"match": "user:{identity}", "history": 1}])}).total == 0


@pytest.mark.parametrize("name", ["memory.max", "memory/memory.limit_in_bytes"])
def test_the_limit_of_the_cgroup_counts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = machine_bytes()
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("1048576\n")
    assert machine_bytes() == 1 << 20 < whole
    (tmp_path / name).write_text("max\n")
    assert machine_bytes() == whole


def test_bytes_are_written_in_units() -> None:
    sizes = (9, 20_000, 11 << 20, 2000 << 20, 30 << 30, 50 << 40)
    assert [written(size) for size in sizes] == ["0 KiB", "19 KiB", "11 MiB", "2,000 MiB", "30 GiB", "50 TiB"]


async def test_check_notes_that_the_machine_has_less(monkeypatch: pytest.MonkeyPatch) -> None:
    code, output = await snorky("check", env=SMALL)
    assert code == 0 and "this machine has" in output and "together" in output
    assert "allow a node" not in output
    needed = node_worst(Limits(connections=100, channels_per_connection=10, outbox_max_bytes=100_000)).total
    for available, is_noted in ((needed, False), (needed - 1, True)):
        monkeypatch.setattr(check, "machine_bytes", lambda available=available: available)
        code, output = await snorky("check", env=SMALL)
        assert code == 0, "a note is no problem"
        assert ("allow a node" in output) is is_noted


async def test_check_notes_that_redis_has_less(tmp_path: Path, shared: Any) -> None:
    config = tmp_path / "snorky.toml"
    config.write_text(
        '[services.pubsub]\nclass = "snorky.services.pubsub:PubSubService"\n'
        '[[services.pubsub.channels]]\nmatch = "news"\nhistory = 100\n'
        '[[services.pubsub.channels]]\nmatch = "chat:*"\nhistory = 10\n'
    )
    async with shared.lend("valkey") as server:
        client = server.client()
        env = {**SMALL, "SNORKY_REDIS_URL": server.url}

        async def checked() -> tuple[int, str]:
            code, output = await snorky("check", "--config", str(config), env=env)
            return code, " ".join(output.split())  # cells of the table are wrapped

        try:
            await client.config_set("maxmemory", 200 << 20)
            code, output = await checked()
            assert code == 0 and "history of pubsub: news" in output and "chat:*: up to" in output
            assert "for each identity and node" in output and "may take" not in output
            await client.config_set("maxmemory", 50 << 20)
            code, output = await checked()
            assert code == 0 and "may take 100 MiB, and Redis has 50 MiB" in output
            env["SNORKY_CLUSTER_LIMITS__STORED_BYTES_PER_IDENTITY"] = str(64 << 20)
            code, output = await checked()
            assert "data of clients: 128 MiB for each identity" in output and "and node" not in output
        finally:
            await client.config_set("maxmemory", 0)
            await client.aclose()
