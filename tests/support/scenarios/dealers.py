"""Dealers that nodes under test are configured with."""

import re
from typing import Any

from snorky.services.datasync import BroadcastDealer, FilterDealer, SimpleDealer

__all__ = ["AllTasks", "Players", "PlayersWithColor", "TasksOfList"]


def __getattr__(name: str) -> type[BroadcastDealer]:
    """Make the dealer RowN: of the model `acquireSubscription-N.ann`."""
    found = re.fullmatch(r"Row(\d+)", name)
    if found is None:
        raise AttributeError(name)
    return type(name, (BroadcastDealer,), {"model": f"acquireSubscription-{found[1]}.ann"})


class AllTasks(BroadcastDealer):
    model = "Task"


class TasksOfList(SimpleDealer):
    model = "Task"

    def get_key_for_model(self, model: Any) -> Any:
        return model["list"]


class Players(FilterDealer):
    model = "Player"


class PlayersWithColor(SimpleDealer):
    name = "players_with_color"
    model = "Player"

    def get_key_for_model(self, model: Any) -> Any:
        return model["color"]
