"""The faults of the table, one function each; `ALL` by their keys, in the order of the table."""

from tests.fault_lab.faults.clients import CLIENT_FAULTS
from tests.fault_lab.faults.deployments import DEPLOYMENT_FAULTS
from tests.fault_lab.faults.machine import MACHINE_FAULTS
from tests.fault_lab.faults.nodes import NODE_FAULTS
from tests.fault_lab.faults.orders import ORDER_FAULTS
from tests.fault_lab.faults.publishers import PUBLISHER_FAULTS
from tests.fault_lab.faults.refusals import REFUSAL_FAULTS
from tests.fault_lab.faults.rollbacks import ROLLBACK_FAULTS
from tests.fault_lab.faults.servers import SERVER_FAULTS
from tests.fault_lab.faults.topologies import TOPOLOGY_FAULTS
from tests.fault_lab.trial import Fault

__all__ = ["ALL"]

ALL: dict[str, Fault] = {
    fault.key: fault
    for fault in (
        *NODE_FAULTS,
        *SERVER_FAULTS,
        *REFUSAL_FAULTS,
        *TOPOLOGY_FAULTS,
        *CLIENT_FAULTS,
        *PUBLISHER_FAULTS,
        *ORDER_FAULTS,
        *MACHINE_FAULTS,
        *DEPLOYMENT_FAULTS,  # for two days clients get resyncs because an older library was loaded
        *ROLLBACK_FAULTS,
    )
}
