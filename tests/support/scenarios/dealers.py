"""Dealers that nodes under test are configured with."""

from typing import Any

from snorky.services.datasync import BroadcastDealer, FilterDealer, SimpleDealer

__all__ = ["AllTasks", "Players", "PlayersWithColor", "TasksOfList"]


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
