"""``dynamo serve`` with scripted children in place of real ones."""

import sys
from pathlib import Path

from dynamo_core.cli import entry
from dynamo_core.supervisor import launch

if __name__ == "__main__":
    launch.launch.__kwdefaults__["child_command"] = (sys.executable, str(Path(__file__).with_name("scripted_child.py")))
    sys.exit(entry.run(["serve", *sys.argv[1:]]))
