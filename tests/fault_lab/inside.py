"""A service on the private port of the lab's nodes: reports what only the process itself can see."""

import asyncio

from snorky.services.rpc import Request, RPCService, rpc_command

__all__ = ["Inside"]


class Inside(RPCService):
    """Counts the tasks of the node's event loop."""

    @rpc_command
    def tasks(self, request: Request) -> int:
        """Number of tasks, including the one that answers."""
        return len(asyncio.all_tasks())
