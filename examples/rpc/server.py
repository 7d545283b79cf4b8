"""Commands with replies: a calculator.

    .venv/bin/python examples/rpc/server.py
    .venv/bin/python examples/talk.py '{"service": "calculator", "message":
        {"command": "sum", "params": {"number1": 2, "number2": 3}, "callId": 1}}'

A parameter may have a default, like the base of `log`. The gateway answers missing or unknown parameters with "Invalid
params" before it calls the method. The method must check types, because parameters are any JSON.
"""

import math
from typing import Any

from snorky.gateway import ServiceRegistry, run
from snorky.services.rpc import Request, RPCError, RPCService, rpc_command


def number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RPCError("Numbers only")
    return value


class CalculatorService(RPCService):
    @rpc_command
    def sum(self, request: Request, number1: Any, number2: Any) -> float:
        return number(number1) + number(number2)

    @rpc_command
    def log(self, request: Request, number1: Any, base: Any = math.e) -> float:
        try:
            return math.log(number(number1), number(base))
        except (ValueError, ZeroDivisionError):
            raise RPCError("There is no such logarithm") from None


if __name__ == "__main__":
    run(public=ServiceRegistry([CalculatorService("calculator")]), private=ServiceRegistry([]))
