"""What the tests of all packages share."""

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


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests marked `vllm` are skipped where it is not installed; under CI that is a failure."""
    if item.get_closest_marker("vllm") is not None and importlib.util.find_spec("vllm") is None:
        if os.environ.get("CI"):
            pytest.fail("vLLM is not installed: the tests against a real engine cannot run")
        pytest.skip("vLLM is not installed")
