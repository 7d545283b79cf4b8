"""For asyncio: AsyncSnorkyBackend, Publisher, and Client, which subscribes to channels in real time."""

from snorky.client.aio.backend import AsyncSnorkyBackend
from snorky.client.aio.publisher import Publisher
from snorky.client.realtime.client import Client, Subscription
from snorky.client.realtime.events import Event, Gap, Message, Recovered

__all__ = ["AsyncSnorkyBackend", "Client", "Event", "Gap", "Message", "Publisher", "Recovered", "Subscription"]
