"""Run a node inside a custom program: broker and registries.

    app = web.Application()
    app.add_routes([WebSocketHandler(registry).route("/ws")])
    app.cleanup_ctx.append(running(registry))
    web.run_app(app, port=8002)

`snorky serve` and `snorky.gateway.run` do the same and also listen on two ports.
"""

import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
from prometheus_client.registry import Collector

from snorky.gateway._version import __version__
from snorky.gateway.auth.authenticator import Authenticator
from snorky.gateway.auth.tokens import FixedKey, Key, Verifier
from snorky.gateway.config.auth import Auth
from snorky.gateway.config.rules.channel_rules import digest_of
from snorky.gateway.config.settings import Settings, load
from snorky.gateway.connection.native.direct_sender import DirectSender
from snorky.gateway.contracts.broker import Broker
from snorky.gateway.contracts.revocations import Revocations
from snorky.gateway.errors import ConfigurationError
from snorky.gateway.http.outbound.hook_calls import http_hooks
from snorky.gateway.http.outbound.jwks import remote_keys
from snorky.gateway.http.protocols.pusher.node_webhooks import running_webhooks
from snorky.gateway.http.protocols.pusher.users.online_users import OnlineUsers
from snorky.gateway.metrics import Metrics
from snorky.gateway.node import Node, new_node_id
from snorky.gateway.redis import EmbeddedServer, RedisBackend
from snorky.gateway.sdk.hook_services import problems_of_hooks
from snorky.gateway.sdk.registry import ServiceRegistry

__all__ = ["running", "running_node"]

_log = structlog.get_logger("snorky.node")


@asynccontextmanager
async def running_node(
    *registries: ServiceRegistry,
    settings: Settings,
    broker: Broker | None = None,
    public_url: str = "",
) -> AsyncIterator[Node]:
    """Run a node with these registries during the context.

    settings: Redis, prefix, authentication and limits are used; without a redis_url a private server is started.
    broker: used instead of Redis. public_url: the node's URL for clients, for `snorky stats`. Raises
    ConfigurationError.
    """
    metrics, node_id = Metrics(), new_node_id()
    async with AsyncExitStack() as stack:
        topology, directory, history_store = None, None, None
        if broker is None:
            url = settings.redis_url or (await stack.enter_async_context(EmbeddedServer())).url
            topology = RedisBackend.of(
                url,
                prefix=settings.prefix,
                node_id=node_id,
                metrics=metrics,
                payload_max_bytes=settings.limits.payload_max_bytes,
                roster_max_bytes=settings.limits.roster_max_bytes,
            )
            broker, directory, history_store = topology.broker, topology.directory, topology.history_store
        hooks = await stack.enter_async_context(http_hooks(settings.hooks, metrics, node_id=node_id))
        auth = Authenticator(
            await stack.enter_async_context(_verifier(settings.auth)),
            revocations=None if topology is None else _revocations(topology, settings),
            auth=settings.auth,
            metrics=metrics,
        )
        direct_sender = DirectSender(settings.public.native_fanout)
        _log.info("fan-out", path=direct_sender.path, reason=direct_sender.reason or None)
        node = Node(
            broker,
            directory,
            history_store,
            limits=settings.limits,
            metrics=metrics,
            node_id=node_id,
            auth=auth,
            hooks=hooks,
            control_log=None if topology is None else topology.control_log(),
            cluster_limits=settings.cluster_limits,
            limit_store=None if topology is None else topology.limit_store(),
            subscription_store=None if topology is None else topology.subscription_store(),
            direct_sender=direct_sender,
        )
        for registry in registries:
            node.attach(registry)
        online_users = OnlineUsers()  # also without such apps: it makes the notices of nodes that die
        node.attach(ServiceRegistry([online_users]))
        problems = problems_of_hooks(settings.hooks, itertools.chain(*registries))
        if problems:
            raise ConfigurationError("\n".join(problems))
        stack.push_async_callback(node.stop)
        await node.start()
        if topology is not None:
            watch = await stack.enter_async_context(topology.write_watch(metrics))
            node.is_redis_full = lambda: watch.is_full
            node.redis_refusal = lambda: watch.refusal
            topology.report(lambda: _state(node, public_url), metrics)
        await _start_webhooks(node, topology, settings, stack)
        if any(app.watchlists for app in (settings.public.pusher_apps or {}).values()):
            if topology is None:
                raise ConfigurationError("[public.pusher_apps] watchlists need Redis, and this node has another broker")
            await stack.enter_async_context(online_users.running(node))
        yield node


def running(*registries: ServiceRegistry, settings: Settings | None = None) -> Callable[[object], AsyncIterator[None]]:
    """Make a cleanup context for an aiohttp application. settings: by default from the environment."""

    async def context(_app: object) -> AsyncIterator[None]:
        async with running_node(*registries, settings=settings or load(None, os.environ)):
            yield

    return context


async def _start_webhooks(node: Node, topology: RedisBackend | None, settings: Settings, stack: AsyncExitStack) -> None:
    """Start the webhooks of Pusher's apps, if there are any; the stack stops them. Raises ConfigurationError."""
    known = (settings.public.pusher_apps or {}).values()
    apps = [each for each in known if each.webhook_url or each.subscription_counts]
    if not apps or "pusher" not in settings.public.protocols:
        return
    if topology is None:
        raise ConfigurationError(
            "[public.pusher_apps] webhook_url and subscription_counts need Redis, and this node has another broker"
        )
    await stack.enter_async_context(running_webhooks(node, apps, topology.webhook_log))


@asynccontextmanager
async def _verifier(auth: Auth) -> AsyncIterator[Verifier | None]:
    """Make the verifier of tokens for the key or the JWKS document in the settings; None = there is none."""
    if auth.jwks_url:
        async with remote_keys(auth.jwks_url) as keys:
            yield Verifier(keys, auth)
    elif auth.public_key is not None:
        previous = Key.public(auth.public_key_previous) if auth.public_key_previous else None
        yield Verifier(FixedKey(Key.public(auth.public_key), previous), auth)
    elif auth.hmac_secret is not None:
        old = auth.hmac_secret_previous
        yield Verifier(FixedKey(Key("HS256", auth.hmac_secret), Key("HS256", old) if old else None), auth)
    elif auth.unsafe_hmac_secret:
        yield Verifier(FixedKey(Key("HS256", auth.unsafe_hmac_secret.encode())), auth)
    else:
        yield None


def _revocations(topology: RedisBackend, settings: Settings) -> Revocations:
    # a new token, or an answer of the backend, may be valid for this long, and the issuer's clock may be behind
    valid_s = max(settings.auth.token_max_lifetime_s, settings.hooks.connect.cache_s)
    keep_s = valid_s + 2 * settings.auth.leeway_s
    return topology.revocations(keep_s=keep_s)


def _total(counter: Collector) -> int:
    """Sum a counter over its labels. To read it from the registry would collect all metrics and list all open files."""
    samples = (sample for metric in counter.collect() for sample in metric.samples)
    return int(sum(sample.value for sample in samples if sample.name.endswith("_total")))


def _state(node: Node, public_url: str) -> dict[str, object]:
    """Return a node's state, for `snorky stats`."""
    metrics = node.metrics
    return {
        "id": node.node_id,
        "sampled_s": time.monotonic(),  # for computing rates: it is read at another time
        "version": __version__,
        "public_url": public_url,
        **node.counts,
        "deliveries_total": _total(metrics.deliveries),
        "publications_received_total": _total(metrics.publications_received),
        "sent_bytes_total": _total(metrics.sent_bytes),
        "messages_received_total": _total(metrics.messages_received),
        "is_redis_unverified": node.is_redis_unverified,
        "is_draining": node.is_draining,
        "rules": digest_of(node.rules),
    }
