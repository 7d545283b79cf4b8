"""The gateway of the to-do list; README.md tells how to run it.

Dealers say which subscriptions a delta is for: AllTasks has one kind of them, TasksByState one for each state, so that
a task that is ticked off is an insert for who looks at the done ones, and a delete for who looks at the open ones.
"""

from typing import Any

from gateway import ServiceRegistry, run
from services.datasync import BroadcastDealer, DataSyncBackend, DataSyncService, SimpleDealer


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
