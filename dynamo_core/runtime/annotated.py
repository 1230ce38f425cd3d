"""What the streams of a :class:`~dynamo_core.runtime.client.Client` yield unless raw items are asked for."""

from __future__ import annotations

from typing import Any

__all__ = ["Annotated"]


class Annotated:
    """One item of a response, in the wrapping that Dynamo's clients expect."""

    __slots__ = ("_comments", "_data", "_event", "_id")

    def __init__(
        self, data: Any = None, *, id: str | None = None, event: str | None = None, comments: list[str] | None = None
    ) -> None:
        self._data = data
        self._id = id
        self._event = event
        self._comments = comments

    def data(self) -> Any:
        return self._data

    def id(self) -> str | None:
        return self._id

    def event(self) -> str | None:
        return self._event

    def comments(self) -> list[str] | None:
        return self._comments

    def is_error(self) -> bool:
        """Always false for items of our own planes: an error ends the stream by an exception."""
        return self._event == "error"

    def __repr__(self) -> str:
        return f"Annotated({self._data!r})"
