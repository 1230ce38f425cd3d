"""OpenAI's API."""

from dynamo_core.http.openai.chat import CHAT_PATH, chat_route
from dynamo_core.http.openai.completions import COMPLETIONS_PATH, completions_route
from dynamo_core.http.openai.models import model_routes
from dynamo_core.http.openai.service import OpenAiService

__all__ = ["CHAT_PATH", "COMPLETIONS_PATH", "OpenAiService", "chat_route", "completions_route", "model_routes"]
