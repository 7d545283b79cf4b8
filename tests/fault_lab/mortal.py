"""A backend job that is killed in the middle of a call: publishes numbers one by one, each with its own key.

    python -m tests.fault_lab.mortal REDIS_URL PREFIX CHANNEL RUN FIRST END

Publishes the numbers from FIRST to END. Prints on stdout each acknowledged number with its position, at once.
"""

import sys

from snorky.client import Publisher

__all__: list[str] = []


def main() -> None:
    redis_url, prefix, channel, run, first, end = sys.argv[1:]
    with Publisher(redis_url, prefix=prefix) as publisher:
        for number in range(int(first), int(end)):
            receipt = publisher.publish(channel, {"n": number}, key=f"{run}:{number}")
            print(number, receipt.position, flush=True)


if __name__ == "__main__":
    main()
