"""What a backend tells about its model, in Dynamo's words: its card, its KV events, its load, and a router of its own.

A backend of one file needs this package and :mod:`dynamo_core.runtime`; see ``examples/custom_backend/one_file_backend.py``.
"""

from dynamo_core.errors import HttpError
from dynamo_core.llm.hashes import compute_block_hash_for_seq
from dynamo_core.llm.indexers import ApproxKvIndexer, KvIndexer
from dynamo_core.llm.kv_router import KvRouter
from dynamo_core.llm.model import ModelInput, ModelRuntimeConfig, ModelType, RouterMode, RoutingConstraints, WorkerType
from dynamo_core.llm.publishers import KvEventPublisher, WorkerMetricsPublisher
from dynamo_core.llm.radix_tree import OverlapScores, RadixTree
from dynamo_core.llm.registration import fetch_model, register_model, unregister_model, update_model_taints
from dynamo_core.llm.router_config import AisPerfConfig, KvRouterConfig, LoadThresholdConfig, RouterConfig

__all__ = [
    "AisPerfConfig",
    "ApproxKvIndexer",
    "HttpError",
    "KvEventPublisher",
    "KvIndexer",
    "KvRouter",
    "KvRouterConfig",
    "LoadThresholdConfig",
    "ModelInput",
    "ModelRuntimeConfig",
    "ModelType",
    "OverlapScores",
    "RadixTree",
    "RouterConfig",
    "RouterMode",
    "RoutingConstraints",
    "WorkerMetricsPublisher",
    "WorkerType",
    "compute_block_hash_for_seq",
    "fetch_llm",
    "fetch_model",
    "register_llm",
    "register_model",
    "unregister_llm",
    "unregister_model",
    "update_model_taints",
]

register_llm = register_model
unregister_llm = unregister_model
fetch_llm = fetch_model
