"""Traces through real routers and simulated workers, in virtual time: what would this router have done for that traffic?"""

from dynamo_core.simulator.cluster import Change, Cluster
from dynamo_core.simulator.report import Balance, Distribution, Goodput, Report, Sla, report
from dynamo_core.simulator.simulation import Fault, MakeRouter, Progress, RequestLog, Simulated, Simulation, WorkerLog
from dynamo_core.simulator.trace import Trace, TraceRequest, read_trace

__all__ = [
    "Balance",
    "Change",
    "Cluster",
    "Distribution",
    "Fault",
    "Goodput",
    "MakeRouter",
    "Progress",
    "Report",
    "RequestLog",
    "Simulated",
    "Simulation",
    "Sla",
    "Trace",
    "TraceRequest",
    "WorkerLog",
    "read_trace",
    "report",
]
