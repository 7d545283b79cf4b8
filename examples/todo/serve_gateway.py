"""The gateway of the to-do list; to run it, see README.md.

Dealers select the subscriptions that receive a delta: AllTasks all of them, TasksByState those of the task's state. So
a completed task is an insert for subscribers of done tasks, and a delete for subscribers of open ones.
"""

from typing import Any

from snorky.gateway import ServiceRegistry, run
from snorky.services.datasync import BroadcastDealer, DataSyncBackend, DataSyncService, SimpleDealer


class AllTasks(BroadcastDealer):
    model = "Task"


class TasksByState(SimpleDealer):
    model = "Task"

    def get_key_for_model(self, model: Any) -> Any:
        return model["completed"]


if __name__ == "__main__":
    datasync = DataSyncService("datasync", [AllTasks, TasksByState])
    run(
        public=ServiceRegistry([datasync]),
        private=ServiceRegistry([DataSyncBackend("datasync_backend", datasync)]),
    )
