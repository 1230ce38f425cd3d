"""An endpoint of one's own: clients say what they think of an answer with ``POST /v1/feedback``."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from dynamo_core import hookimpl
from dynamo_core.specs import HttpSpec


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    file: str = "feedback.jsonl"
    """Where each feedback is appended as one line of JSON."""


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    request_id: str
    """The `x-request-id` of the answer."""
    score: Annotated[int, msgspec.Meta(ge=-1, le=1)]
    comment: Annotated[str, msgspec.Meta(max_length=2000)] = ""


@hookimpl
def dynamo_config() -> type[Config]:
    return Config


@hookimpl
def dynamo_http_routes(config: Config) -> Iterator[HttpSpec]:
    from litestar import post  # only a frontend needs it
    from litestar.params import Body

    path = Path(config.file)

    @post("/v1/feedback", status_code=202, sync_to_thread=True)
    def feedback(data: Annotated[Feedback, Body()]) -> dict[str, str]:
        line = msgspec.json.encode(data) + b"\n"
        with path.open("ab", buffering=0) as file:
            file.write(line)  # one system call: frontends may share the file
        return {"status": "accepted"}

    yield HttpSpec(name="feedback", route_handlers=[feedback], description="POST /v1/feedback.")
