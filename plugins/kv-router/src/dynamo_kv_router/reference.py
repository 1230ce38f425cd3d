"""The table of settings in the plugin's README, made from :class:`~dynamo_kv_router.config.KvRouterConfig`.

``python -m dynamo_kv_router.reference README.md`` renews it in place.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from dynamo_core.config.fields import Field, struct_fields
from dynamo_kv_router.config import KvRouterConfig

__all__ = ["MARK_BEGIN", "MARK_END", "with_parameters"]

MARK_BEGIN = "<!-- parameters: made by python -m dynamo_kv_router.reference -->"
MARK_END = "<!-- end of parameters -->"


def with_parameters(document: str) -> str:
    """``document`` with the table between its two marks renewed. Raises :class:`ValueError` where the marks are missing."""
    before, begin, rest = document.partition(MARK_BEGIN)
    _, end, after = rest.partition(MARK_END)
    if not begin or not end:
        raise ValueError(f"the document lacks the lines {MARK_BEGIN!r} and {MARK_END!r}")
    head = ("| key | flag | environment | default | meaning |", "|---|---|---|---|---|")
    table = "\n".join((*head, *map(_row, struct_fields(KvRouterConfig).values())))
    return f"{before}{MARK_BEGIN}\n\n{table}\n\n{MARK_END}{after}"


def _row(field: Field) -> str:
    flag = f"`{field.flag}`" + (", `--no-…`" if field.is_bool else "")
    default = "—" if field.default is None or field.default == {} else f"`{msgspec.json.encode(field.default).decode()}`"
    env = ", ".join(f"`{name}`" for name in field.env)
    return f"| `{field.name}` | {flag} | {env} | {default} | {field.doc} |"


def _main(path: str) -> None:
    document = Path(path)
    document.write_text(with_parameters(document.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
