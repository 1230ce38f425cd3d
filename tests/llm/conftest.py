from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from dynamo_core.testing import InprocCluster


@pytest.fixture
async def cluster() -> AsyncIterator[InprocCluster]:
    async with InprocCluster() as made:
        yield made
