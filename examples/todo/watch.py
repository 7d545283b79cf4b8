"""Do the same as the page, without a browser: get the list, then print every change of it.

python watch.py [--open] [--site http://127.0.0.1:8000] [--gateway ws://127.0.0.1:8002/ws]
"""

import argparse
import asyncio
import contextlib
import json

import aiohttp


async def watch(site: str, gateway: str, *, is_open_only: bool) -> None:
    """Print the tasks, then their changes, until the gateway ends the connection."""
    async with aiohttp.ClientSession(raise_for_status=True) as session:
        params = {"completed": "false"} if is_open_only else {}
        async with session.get(f"{site}/api/tasks/", params=params, headers={"X-Snorky": "Subscribe"}) as response:
            token = response.headers["X-Subscription-Token"]
            for task in await response.json():
                print("task", json.dumps(task), flush=True)
        async with session.ws_connect(gateway) as socket:
            acquire = {"command": "acquireSubscription", "params": {"token": token}, "callId": 1}
            await socket.send_json({"service": "datasync", "message": acquire})
            async for frame in socket:
                if frame.type is not aiohttp.WSMsgType.TEXT:
                    continue
                envelope = json.loads(frame.data)
                if envelope["service"] != "datasync":
                    continue
                message = envelope["message"]
                if message["type"] == "delta":
                    print(message["delta"]["type"], json.dumps(message["delta"]), flush=True)
                else:  # the reply: an error, or null
                    print("subscribed" if message["type"] == "response" else message["message"], flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Print the tasks, then their changes.")
    parser.add_argument("--open", action="store_true", help="only those that are not done")
    parser.add_argument("--site", default="http://127.0.0.1:8000")
    parser.add_argument("--gateway", default="ws://127.0.0.1:8002/ws")
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(watch(arguments.site, arguments.gateway, is_open_only=arguments.open))
