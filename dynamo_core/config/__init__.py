"""Settings: flags > environment > file > defaults, and where each value came from."""

from dynamo_core.config.settings import Settings

__all__ = ["Settings"]
