"""Runs a test file of the JavaScript client for `mutations`: exit code 1 and a line that names the failure.

python -m tests.fault_lab.node_test FILE
"""

import asyncio
import sys

from tests.support.processes.nodes import Process
from tests.support.processes.tools import program

__all__ = ["main"]

WITHIN_S = 60.0


async def main(file: str) -> int:
    """Run it and print what failed."""
    process = Process([program("node"), "--test", "--test-reporter=tap", file])
    try:
        code = await process.wait(WITHIN_S)
    finally:
        await process.close()
    failed = [line.strip() for line in process.log.splitlines() if line.strip().startswith("not ok")]
    if any(line.endswith(file) for line in failed):  # the file could not be loaded, which shows nothing
        print(process.log)
        return 2
    for line in failed:
        print(f"BROKEN: {line}")
    return 1 if code and failed else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(main(sys.argv[1])))
