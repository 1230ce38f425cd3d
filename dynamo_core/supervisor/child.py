"""The main module of every process that ``dynamo serve`` starts: ``python -m dynamo_core.supervisor.child ORDER --control=FD …``.

An engine that spawns processes of its own has them import this module again, so it imports next to nothing.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main(argv: list[str]) -> int:
    order_path, *rest = argv
    options = dict(option.split("=", 1) for option in rest)

    from dynamo_core.supervisor.lifeline import tie

    tie(int(options["--lifeline"]))

    from dynamo_core.supervisor.service import run_order

    return run_order(order_path, int(options["--control"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
