"""Each example is importable in its tests, installed or not. No two have a module of one name."""

import sys
from pathlib import Path

for manifest in sorted(Path(__file__).parent.glob("*/pyproject.toml")):
    sys.path.insert(0, str(manifest.parent))
