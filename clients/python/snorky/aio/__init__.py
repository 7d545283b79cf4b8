"""For asyncio: AsyncSnorkyBackend, Publisher, and Client, which subscribes to channels in real time."""

from snorky.aio.backend import AsyncSnorkyBackend
from snorky.aio.publisher import Publisher
from snorky.realtime.client import Client, Subscription
from snorky.realtime.events import Event, Gap, Message, Recovered

__all__ = ["AsyncSnorkyBackend", "Client", "Event", "Gap", "Message", "Publisher", "Recovered", "Subscription"]
