"""What several rooms' tests share."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from dynamo_core.testing.tiny_model import make_tiny_model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder of a few layers with random weights, a tokenizer trained on the spot and a chat template."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_tiny_model(folder)
    return folder


@pytest.fixture(scope="session")
def needs_vllm() -> None:
    """Skip where vLLM is not installed; under CI that is a failure."""
    if importlib.util.find_spec("vllm") is None:
        if os.environ.get("CI"):
            pytest.fail("vLLM is not installed: the tests against a real engine cannot run")
        pytest.skip("vLLM is not installed")
