"""Publishers of a Redis that the test plays."""

from typing import Any

from scripted_redis import redis_url
from scripted_server import ScriptedServer

from snorky.client import Publisher

POSITION = "6aa:7:0123abcd"


def publisher_of(server: ScriptedServer, **options: Any) -> Publisher:
    return Publisher(redis_url(server), sleep=lambda _s: None, **options)
