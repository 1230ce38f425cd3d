"""The Protocols that a plugin implements and the records they speak of. Imports nothing of ours but :mod:`dynamo_core.errors`."""

from dynamo_core.contracts.connector import Connector, ConnectorContext, PoolReplicas
from dynamo_core.contracts.context import Context
from dynamo_core.contracts.discovery import Deleted, Discovery, DiscoveryEvent, Instance, Put, Synced
from dynamo_core.contracts.engine import (
    Engine,
    EngineChunk,
    EngineContext,
    EngineInfo,
    EngineLoad,
    EngineRequest,
    EngineSink,
    FinishReason,
    SamplingParams,
    StepEngine,
    StopConditions,
    TokenLogprob,
)
from dynamo_core.contracts.gate import HttpRequestInfo, PreparedRequest, Principal, RequestSummary
from dynamo_core.contracts.kv_event import KvBatch, KvCleared, KvEvent, KvRemoved, KvStored
from dynamo_core.contracts.model_card import ModelCard, ModelInput, ModelType, Role
from dynamo_core.contracts.output_filter import OutputFilter, OutputStream
from dynamo_core.contracts.parser import OutputParser, ParsedText, ParserContext, ToolCallPart
from dynamo_core.contracts.planes import (
    ClientStream,
    EventPlane,
    EventSubscription,
    RequestHandler,
    RequestPlane,
    ResponseSink,
    StreamReceiver,
)
from dynamo_core.contracts.planner import Planner, PlannerContext, PlannerObservation, PoolReading, ScalingDecision
from dynamo_core.contracts.planner_stage import PlannerStage, Proposal, StageName, StageResult, StageState
from dynamo_core.contracts.pool_selector import PoolRequest, PoolSelector, PoolSelectorContext, PoolView
from dynamo_core.contracts.predictor import Predictor, PredictorContext
from dynamo_core.contracts.prefill_policy import PrefillPolicy, PrefillPolicyContext, PrefillRequest
from dynamo_core.contracts.router import Decision, Hold, Outcome, Reject, Route, Router, RouterContext, RouteRequest, WorkerView

__all__ = [
    "ClientStream",
    "Connector",
    "ConnectorContext",
    "Context",
    "Decision",
    "Deleted",
    "Discovery",
    "DiscoveryEvent",
    "Engine",
    "EngineChunk",
    "EngineContext",
    "EngineInfo",
    "EngineLoad",
    "EngineRequest",
    "EngineSink",
    "EventPlane",
    "EventSubscription",
    "FinishReason",
    "Hold",
    "HttpRequestInfo",
    "Instance",
    "KvBatch",
    "KvCleared",
    "KvEvent",
    "KvRemoved",
    "KvStored",
    "ModelCard",
    "ModelInput",
    "ModelType",
    "Outcome",
    "OutputFilter",
    "OutputParser",
    "OutputStream",
    "ParsedText",
    "ParserContext",
    "Planner",
    "PlannerContext",
    "PlannerObservation",
    "PlannerStage",
    "PoolReading",
    "PoolReplicas",
    "PoolRequest",
    "PoolSelector",
    "PoolSelectorContext",
    "PoolView",
    "Predictor",
    "PredictorContext",
    "PrefillPolicy",
    "PrefillPolicyContext",
    "PrefillRequest",
    "PreparedRequest",
    "Principal",
    "Proposal",
    "Put",
    "Reject",
    "RequestHandler",
    "RequestPlane",
    "RequestSummary",
    "ResponseSink",
    "Role",
    "Route",
    "RouteRequest",
    "Router",
    "RouterContext",
    "SamplingParams",
    "ScalingDecision",
    "StageName",
    "StageResult",
    "StageState",
    "StepEngine",
    "StopConditions",
    "StreamReceiver",
    "Synced",
    "TokenLogprob",
    "ToolCallPart",
    "WorkerView",
]
