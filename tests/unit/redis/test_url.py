"""The grammar of redis_url: one text in both packages, parsed alike by nodes and Publisher, secrets in no error."""

import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from snorky.client import Publisher
from snorky.client.redis.pool import Pools
from snorky.gateway.config.parsers import parse_prefix
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.multi.hashing import targets_of
from snorky.gateway.redis.url import parse_redis_url

ROOT = Path(__file__).resolve().parents[3]

GOOD = [
    "redis://h",
    "redis://:pw@h:1/2",
    "redis://us%3Aer:p%40ss%2F%23%25@h:7000/3",
    "redis://[::1]:7/0",
    "rediss://h:7/0",
    "rediss://h?ssl_check_hostname=false&ssl_cert_reqs=required",
    "unix:///tmp/x.sock?db=3",
    "unix:///run/my%20redis%23.sock",
    "redis+sentinel://u:p@h:1,h:2/main/4?sentinel_username=u&sentinel_password=p",
    "rediss+sentinel://u:p@h/my%2Fmain",
    "redis+cluster://u:p@h,h2:1",
    "rediss+cluster://h:1?ssl_check_hostname=no",
]
# The secrets in them are `s3cret`.
BAD = {
    "redis://:#s3cret@10.9.9.9:6379/0": "# as %23",
    "redis://:s3cret#@10.9.9.9:6379/0": "# as %23",
    "redis://:?s3cret@10.9.9.9:6379/0": "percent-encoding",
    "redis://:/s3cret@10.9.9.9:6379/0": "percent-encoding",
    "redis://u:12/s3cret@10.9.9.9/0": "percent-encoding",
    "redis://u:s3cret?x@10.9.9.9/0": "percent-encoding",
    "redis://:6379?db=s3cret@h": "percent-encoding",
    "redis://u:s3cret@": "percent-encoding",
    "redis://u:s3cret@:6379/0": "percent-encoding",
    "redis://u:s3 cret@h/0": "a space as %20",
    "redis://u:s3cret\n@h/0": "invisible",
    "redis://u:s3cret@h/0\ufeff": "invisible",
    "redis://u:s3cret@h:port": "no valid host and port",
    "redis://u:s3cret[@h": "no valid host and port",
    "redis://h?s3cret=1": "an option is unknown",
    "rediss://h?ssl_ca_cert=/s3cret": "did you mean ssl_ca_certs",
    "rediss://:s3cret@h?ssl_cert_reqs=none": "always verified",
    "rediss+cluster://:s3cret@h?ssl_cert_reqs=none": "always verified",
    "redis://:s3cret@h?decode_responses=true": "leave out decode_responses",
    "redis://:s3cret@h?max_connections=1": "leave out max_connections",
    "redis://:s3cret@h?protocol=3": "leave out protocol",
    "redis://:s3cret@h?db=1&db=2": "twice",
    "redis://:s3cret@h/1234567890123": "database",
    "redis+cluster://u:s3cret@h:1/2": "which a Cluster has not",
    "redis+sentinel://u:s3cret@h:1": "names no sentinels",
    "s3cret": "no Redis URL",
}


def test_grammar_is_the_same_text_in_both_packages() -> None:
    ours, theirs = (ROOT / path for path in ("gateway/redis/url.py", "clients/python/snorky/client/redis/url.py"))
    assert ours.read_text() == theirs.read_text()


@pytest.mark.parametrize("url", GOOD)
def test_url_names_the_same_redis_to_nodes_and_publishers(url: str) -> None:
    (target,) = targets_of(url)
    assert Pools(url, timeout_s=1).identities == {target.identity} == {parse_redis_url(url).identity}
    assert ":p@" not in repr(parse_redis_url(url))


@pytest.mark.parametrize("read", [targets_of, Publisher])
@pytest.mark.parametrize("url", BAD)
def test_url_that_cannot_work_is_refused_by_both_without_its_secret(read: Callable[[str], object], url: str) -> None:
    with pytest.raises((ConfigurationError, ValueError)) as caught:
        read(url)
    assert BAD[url] in str(caught.value)
    assert "s3" not in "".join(traceback.format_exception(caught.value)).replace(__file__, "")


@pytest.mark.parametrize(
    ("urls", "why"),
    [
        ("redis://h/1, redis://:s3cret@h:6379/1", "twice"),
        ("redis+cluster://:s3cret@h, redis://h2", "Cluster"),
        ("redis://h, ", "list of servers"),
        ("redis://h,s3cret", "list of servers"),
    ],
)
@pytest.mark.parametrize("read", [targets_of, Publisher])
def test_list_that_cannot_work_is_refused_by_both(read: Callable[[str], object], urls: str, why: str) -> None:
    with pytest.raises((ConfigurationError, ValueError), match=why) as caught:
        read(urls)
    assert "s3cret" not in str(caught.value)


def test_list_is_taken_apart_alike() -> None:
    urls = "redis://h/1,  rediss://[::1]:7, redis+sentinel://h:1,h:2/main,unix:///tmp/x"
    assert Pools(urls, timeout_s=1).identities == {identity for identity, _ in targets_of(urls).items()}
    assert len(targets_of(urls)) == 4


@pytest.mark.parametrize("prefix", ["", "a{b", "a*", "ü", "a" * 65, "a\n", " a", "acme", "a_b.c:d-1", "a" * 64])
def test_prefix_is_read_alike(prefix: str) -> None:
    def is_good(read: Callable[[], object]) -> bool:
        try:
            read()
        except ValueError:
            return False
        return True

    assert is_good(lambda: parse_prefix(prefix)) == is_good(lambda: Publisher("redis://h", prefix=prefix))


@pytest.mark.parametrize("options", ["", "?ssl_check_hostname=false"])
def test_publisher_verifies_certificates_as_nodes_do(options: str) -> None:
    (target,) = targets_of(f"rediss://h{options}")
    server = Pools(f"rediss://h{options}", timeout_s=1).of("pubsub:news")
    made = server.pool("news").connection_kwargs
    assert target.tls is not None
    assert (made["ssl_cert_reqs"], made["ssl_check_hostname"]) == ("required", target.tls.check_hostname)
