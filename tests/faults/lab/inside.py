"""A service that the lab's nodes have at their private door: what can only be told from inside of a process."""

import asyncio

from services.rpc import Request, RPCService, rpc_command

__all__ = ["Inside"]


class Inside(RPCService):
    """Counts the tasks of the node's event loop."""

    @rpc_command
    def tasks(self, request: Request) -> int:
        """How many tasks there are, the one that answers among them."""
        return len(asyncio.all_tasks())
