"""Talk to a gateway from a shell: send messages and print the received ones, until Ctrl-C.

    .venv/bin/python examples/talk.py '{"service": "echo", "message": "hello"}'

--token T: authenticate with this token; --token - reads it from standard input, so that the process list does not show
it. --url: the gateway, default ws://127.0.0.1:8002/ws. --count N: end after N received messages.
"""

import argparse
import asyncio
import json
import sys

import aiohttp


async def talk(url: str, token: str | None, messages: list[str], count: int) -> None:
    headers = {} if token is None else {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession() as session, session.ws_connect(url, headers=headers) as socket:
        for message in messages:
            await socket.send_str(message)
        async for frame in socket:
            if frame.type is aiohttp.WSMsgType.TEXT:
                print(json.dumps(json.loads(frame.data), ensure_ascii=False), flush=True)
                count -= 1
                if count == 0:
                    return
        print(f"closed by the gateway: {socket.close_code}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("messages", nargs="*", metavar="MESSAGE", help="a JSON envelope to send")
    parser.add_argument("--url", default="ws://127.0.0.1:8002/ws")
    parser.add_argument("--token")
    parser.add_argument("--count", type=int, default=0)
    arguments = parser.parse_args()
    token = arguments.token
    if token == "-":  # noqa: S105 - means standard input
        token = sys.stdin.readline().strip()
    try:
        asyncio.run(talk(arguments.url, token, arguments.messages, arguments.count))
    except KeyboardInterrupt:
        pass
    except aiohttp.InvalidURL:
        sys.exit(f"error: {arguments.url} is not a URL; write ws://127.0.0.1:8002/ws")
    except aiohttp.WSServerHandshakeError as error:
        sys.exit(f"error: {arguments.url} refuses WebSockets with {error.status}; is the path right, and the port?")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        sys.exit(f"error: {arguments.url} cannot be reached: {str(error) or type(error).__name__}")
