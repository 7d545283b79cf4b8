"""Publisher for asyncio: runs `snorky.client.Publisher` in its own threads; a forked process creates its own."""

from collections.abc import Iterable
from functools import partial
from typing import Any, Literal

from snorky.client.aio.threads import Threads
from snorky.client.publication import Publication
from snorky.client.receipt import Receipt
from snorky.client.redis.publisher import Publisher as BlockingPublisher

__all__ = ["Publisher"]


class Publisher:
    """Publishes from coroutines; arguments as for `snorky.client.Publisher`.

    concurrency_max: calls that run at once; further ones wait for a thread, in order, and their timeout starts when
    they get one. A running call that is cancelled continues in its thread, and its result is discarded. For many
    messages use `publish_many`, which pipelines them. Close it with `async with` or `aclose`.
    """

    def __init__(
        self,
        redis_url: str,
        *,
        prefix: str = "snorky",
        timeout_s: float = 10.0,
        attempt_timeout_s: float = 3.0,
        if_no_function: Literal["error", "publish"] = "error",
        if_refused: Literal["error", "retry"] = "error",
        concurrency_max: int = 8,
    ) -> None:
        self._publisher = BlockingPublisher(
            redis_url,
            prefix=prefix,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            if_no_function=if_no_function,
            if_refused=if_refused,
        )
        self._threads = Threads(concurrency_max, "snorky-publisher")

    async def __aenter__(self) -> "Publisher":
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.aclose()

    async def publish(
        self,
        channel: Any,
        message: Any,
        *,
        key: str | None = None,
        service: str = "pubsub",
        count: bool = False,
        require_history: bool = False,
        timeout_s: float | None = None,
    ) -> Receipt:
        """Publish one message; as `snorky.client.Publisher.publish`."""
        options: dict[str, Any] = {
            "key": key,
            "service": service,
            "count": count,
            "require_history": require_history,
            "timeout_s": timeout_s,
        }
        return await self._threads.run(partial(self._publisher.publish, channel, message, **options))

    async def publish_many(
        self, messages: Iterable[Publication], *, count: bool = False, timeout_s: float | None = None
    ) -> list[Receipt]:
        """Publish messages, pipelined and in order; as `snorky.client.Publisher.publish_many`."""
        return await self._threads.run(
            partial(self._publisher.publish_many, list(messages), count=count, timeout_s=timeout_s)
        )

    async def aclose(self) -> None:
        """Wait for running calls, then stop the threads and close the connections."""
        await self._threads.aclose()
        self._publisher.close()
