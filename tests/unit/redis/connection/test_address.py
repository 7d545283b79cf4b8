"""RedisTarget: connection parameters from URLs, and no secrets in texts."""

import json
import traceback
from pathlib import Path

import pytest

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis import channel_name
from snorky.gateway.redis.target import target_from_url

VECTORS = Path(__file__).resolve().parents[3] / "vectors" / "redis_names.json"


def test_the_parts_of_a_url_are_read() -> None:
    target = target_from_url("redis://us%3Aer:p%40ss%2F%23%25@redis.example:7000/3")
    assert (target.host, target.port, target.db) == ("redis.example", 7000, 3)
    assert (target.username, target.password) == ("us:er", "p@ss/#%")
    assert target.tls is None


@pytest.mark.parametrize(
    ("url", "safe"),
    [
        ("redis://", "redis://127.0.0.1:6379/0"),
        ("redis://h", "redis://h:6379/0"),
        ("redis://:secret@h/1", "redis://h:6379/1"),
        ("redis://h?db=4", "redis://h:6379/4"),
        ("redis://[::1]:6380", "redis://[::1]:6380/0"),
        ("rediss://u:secret@h", "rediss://h:6379/0"),
        ("unix:///run/my%20redis.sock?db=2", "unix:///run/my redis.sock?db=2"),
        ("unix://u:secret@/run/redis.sock", "unix:///run/redis.sock?db=0"),
        (
            "redis+sentinel://u:secret@a:1,[::1]/my%2Fmain?sentinel_password=secret",
            "redis+sentinel://a:1,[::1]:26379/my/main/0",
        ),
        ("rediss+sentinel://a/main/3", "rediss+sentinel://a:26379/main/3"),
        ("redis+cluster://u:secret@a,b:7000", "redis+cluster://a:6379,b:7000"),
    ],
)
def test_the_safe_url_has_no_secret(url: str, safe: str) -> None:
    target = target_from_url(url)
    assert target.safe_url == safe
    assert "secret" not in repr(target) + str(target)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("redis+sentinel://a:1,b:2", "names no sentinels, or nothing that they know"),
        ("redis+sentinel:///main", "names no sentinels"),
        ("redis+sentinel://a:1,,b/main", "names no sentinels"),
        ("redis+sentinel://a:1/main/zero", "database"),
        ("redis+sentinel://a:1/main/0/0", "database"),
        ("redis+sentinel://a:1/main?ssl_ca_certs=/x", "unknown for redis[+]sentinel://"),
        ("redis://a:1?sentinel_password=x", "unknown for redis://"),
        ("redis+cluster://a:1/1", "which a Cluster has not"),
        ("redis+cluster://a:1,,b", "names no servers"),
        ("redis+cluster://a:1?db=1", "unknown for redis[+]cluster://"),
        ("redis://a:1,b:2", "list"),
        (["redis://a", "redis://b"], "not one URL"),
        ("", "is no Redis URL"),
        ("localhost:6379", "is no Redis URL"),
        ("http://localhost", "is no Redis URL"),
        ("redis://h:port", "no valid host and port"),
        ("redis://h:99999", "no valid host and port"),
        ("redis://h/zero", "database"),
        ("redis://h/-1", "database"),
        ("unix://", "names no socket"),
        ("redis://h?timeout=3", "leave out timeout"),
        ("redis://h?ssl_ca_certs=/x", "unknown for redis://"),
        ("rediss://h?ssl_cert_reqs=none", "always verified"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
        ("rediss://h?ssl_ca_certs=", "is empty"),
        ("rediss://h?ssl_certfile=/nowhere.pem", "cannot load certificates"),
    ],
)
def test_an_unusable_url_is_refused_with_the_reason(url: object, text: str) -> None:
    with pytest.raises(ConfigurationError, match=text):
        target_from_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "redis://u:hunter2@h:port",
        "redis://u:hunt[er2@h",
        "redis://u:hunter2@h/x",
        "http://u:hunter2@h",
        "redis://u:hunter2",
        "redis+sentinel://u:hunter2@a:port/main",
        "redis+sentinel://a/main/x?sentinel_password=hunter2",
    ],
)
def test_an_error_never_quotes_the_secret(url: str) -> None:
    with pytest.raises(ConfigurationError) as error:
        target_from_url(url)
    shown = "".join(traceback.format_exception(error.value))
    assert "hunter2" not in shown and "hunt[er2" not in shown


def test_tls_is_verified_unless_only_the_name_is_excepted() -> None:
    strict = target_from_url("rediss://h").tls
    assert strict is not None and strict.check_hostname and strict.verify_mode.name == "CERT_REQUIRED"
    lax = target_from_url("rediss://h?ssl_check_hostname=false&ssl_cert_reqs=required").tls
    assert lax is not None and not lax.check_hostname and lax.verify_mode.name == "CERT_REQUIRED"


def test_channel_names_are_the_published_vectors() -> None:
    for vector in json.loads(VECTORS.read_text())["names"]:
        prefix, rest = vector["redis"].split(":{", 1)
        assert channel_name(prefix, rest[:-1]) == vector["redis"].encode()
