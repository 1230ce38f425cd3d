"""The Litestar application: OpenAI's API, streams, errors, health and metrics."""
