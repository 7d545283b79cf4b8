"""From `redis_url` to the target of one Redis, a Sentinel setup or a Cluster (grammar: gateway/redis/url.py)."""

import ssl
from collections.abc import Mapping
from dataclasses import replace

from snorky.gateway.errors import ConfigurationError
from snorky.gateway.redis.cluster.shard_map import ShardMap
from snorky.gateway.redis.connection.address import RedisTarget
from snorky.gateway.redis.connection.sentinel import Sentinels
from snorky.gateway.redis.url import parse_redis_url

__all__ = ["target_from_url"]

_TLS_PATHS = ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile", "ssl_password")


def target_from_url(url: object) -> RedisTarget:
    """Parse one URL. Raises ConfigurationError: invalid URL, unknown option, unreadable certificate."""
    if not isinstance(url, str):
        raise ConfigurationError('redis_url is not one URL; write "redis://127.0.0.1:6379/0"')
    try:
        read = parse_redis_url(url)
    except ValueError as error:
        raise ConfigurationError(str(error)) from None
    target = RedisTarget(
        host=read.addresses[0][0],
        port=read.addresses[0][1],
        path=read.path,
        db=read.db,
        username=read.username,
        password=read.password,
        tls=None if read.tls is None else _tls_context(read.tls),
        tls_options=read.tls or {},
    )
    if read.is_cluster:
        cluster = ShardMap([replace(target, host=host, port=port) for host, port in read.addresses])
        return replace(target, cluster=cluster)
    if not read.is_sentinel:
        return target
    known = replace(target, db=0, username=read.sentinel_username, password=read.sentinel_password)
    watchers = [replace(known, host=host, port=port) for host, port in read.addresses]
    sentinels = Sentinels(watchers, name=read.name, primary=target)
    return replace(target, route=sentinels, sentinels=sentinels)


def _tls_context(options: Mapping[str, str | bool]) -> ssl.SSLContext:
    """Make the TLS context, when settings are read: so a missing file is reported at the start, not at a reconnect."""
    paths = {name: str(options[name]) for name in _TLS_PATHS if name in options}
    try:
        context = ssl.create_default_context(cafile=paths.get("ssl_ca_certs"), capath=paths.get("ssl_ca_path"))
        context.check_hostname = options.get("ssl_check_hostname") is not False
        if "ssl_certfile" in paths:
            context.load_cert_chain(paths["ssl_certfile"], paths.get("ssl_keyfile"), paths.get("ssl_password"))
    except (OSError, ssl.SSLError) as error:
        names = ", ".join(f"{name}={path}" for name, path in paths.items() if name != "ssl_password")
        raise ConfigurationError(f"redis_url: cannot load certificates ({names}): {error}") from error
    return context
