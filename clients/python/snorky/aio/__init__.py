"""The same for asyncio: AsyncSnorkyBackend, Publisher; and Client, which hears channels in real time."""

from snorky.aio.backend import AsyncSnorkyBackend
from snorky.aio.publisher import Publisher

__all__ = ["AsyncSnorkyBackend", "Publisher"]
