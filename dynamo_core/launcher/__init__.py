"""Engines, inputs and outputs put together in one command: ``dynamo run`` and ``dynamo chat``."""
