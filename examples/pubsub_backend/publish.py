"""The backend's side: publish a message. Needs only snorky-client; to run it, see server.py."""

import json
import os
import sys

from snorky.client import SnorkyBackend, SnorkyError, SnorkyHTTPTransport, TransportError

URL = os.environ.get("SNORKY_BACKEND_URL", "http://127.0.0.1:8003/backend")
KEY = os.environ.get("SNORKY_PRIVATE__API_KEY")

if __name__ == "__main__":
    channel, message = sys.argv[1], json.loads(sys.argv[2])
    try:
        with SnorkyHTTPTransport(URL, KEY, timeout_s=5) as transport:
            SnorkyBackend(transport).call("pubsub_backend", "publish", channel=channel, message=message)
    except (SnorkyError, TransportError) as error:
        sys.exit(f"not published: {error}")
    print("published")
