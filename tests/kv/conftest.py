from __future__ import annotations

from collections.abc import Iterator

import pytest

from dynamo_core.kv import prefix_index
from dynamo_core.kv.block_map import PythonBlockMap


@pytest.fixture(scope="module", params=["compiled", "python"])
def block_map(request: pytest.FixtureRequest) -> Iterator[None]:
    """Prefix indexes with each of the two maps."""
    if request.param == "compiled":
        pytest.importorskip("dynamo_core.kv._block_map", reason="built without a compiler")
        yield
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(prefix_index, "new_block_map", PythonBlockMap)
            yield
