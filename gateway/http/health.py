"""Endpoints of the private port for an operator's tools: liveness, readiness, metrics.

/healthz  200 while the event loop responds: if it does not, restart the process
/readyz   200: send clients to this node; 503: do not; the body contains the reasons
/metrics  Prometheus
"""

from typing import Final

from aiohttp import web
from prometheus_client.aiohttp import make_aiohttp_handler

from snorky.gateway.node import Node

__all__ = ["ops_routes"]

FULL_ADVICE: Final = (
    "Redis accepts no more writes: raise maxmemory, or find out which keys fill it (snorky check, redis-cli --bigkeys)"
)


def ops_routes(node: Node) -> list[web.RouteDef]:
    """Make the routes for the private application."""

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "alive", "node": node.node_id})

    async def readyz(_request: web.Request) -> web.Response:
        reasons = ["draining"] * node.is_draining + ["redis_unverified"] * node.is_redis_unverified
        reasons += ["redis_full"] * node.is_redis_full()
        reasons += ["redis_refuses"] * bool(refusal := node.redis_refusal())
        body = {"status": "unready" if reasons else "ready", "reasons": reasons, "node": node.node_id}
        if "redis_full" in reasons:
            body["advice"] = FULL_ADVICE
        elif refusal:
            body["advice"] = f"Redis refuses writes of services: {refusal}; run snorky check for details"
        return web.json_response(body, status=503 if reasons else 200)

    return [
        web.get("/healthz", healthz),
        web.get("/readyz", readyz),
        web.get("/metrics", make_aiohttp_handler(node.metrics.registry)),
    ]
