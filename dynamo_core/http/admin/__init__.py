"""Routes for those who run the server: health, metrics, and what the API looks like."""

from dynamo_core.http.admin.busy import busy_routes
from dynamo_core.http.admin.docs import openapi_config, openapi_route
from dynamo_core.http.admin.health import Health, health_routes
from dynamo_core.http.admin.metrics import Peers, metrics_route

__all__ = ["Health", "Peers", "busy_routes", "health_routes", "metrics_route", "openapi_config", "openapi_route"]
