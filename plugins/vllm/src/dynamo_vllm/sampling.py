"""Our sampling parameters and stop conditions as vLLM's."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dynamo_core.contracts import EngineRequest
from dynamo_core.errors import InvalidRequest

__all__ = ["SamplingMapper", "invalid"]

_SAME = (
    "temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty", "repetition_penalty", "logit_bias", "seed",
)  # fmt: skip
_GUIDED = ("json", "regex", "choice", "grammar", "json_object", "structural_tag")


class SamplingMapper:
    """Made once an engine; a call a request, about 10 µs.

    ``defaults`` are the model's own (``generation_config.json``), used where the request says nothing. ``guided`` is false
    when vLLM has no tokenizer to follow a schema with.
    """

    def __init__(self, defaults: Mapping[str, Any], *, guided: bool) -> None:
        from vllm.exceptions import VLLMValidationError
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        self._make: Callable[..., Any] = SamplingParams
        self._structured: Callable[..., Any] = StructuredOutputsParams
        self._refusals = (VLLMValidationError, ValueError, TypeError)
        self._guided = guided
        self._base = {name: value for name, value in defaults.items() if name in _SAME}
        # The frontend turns ids into text and matches stop strings.
        self._base |= {"detokenize": False, "output_kind": RequestOutputKind.DELTA, "skip_clone": True}

    def __call__(self, request: EngineRequest) -> Any:
        """Raises :class:`~dynamo_core.errors.InvalidRequest` for what vLLM does not accept."""
        values = dict(self._base)
        sampling, stop = request.sampling, request.stop
        for name in _SAME:
            value = getattr(sampling, name)
            if value is not None:
                values[name] = value
        values["max_tokens"] = stop.max_tokens
        values["min_tokens"] = min(stop.min_tokens, stop.max_tokens)
        values["ignore_eos"] = stop.ignore_eos
        # vLLM without a tokenizer does not know the model's own end.
        values["stop_token_ids"] = [*stop.stop_token_ids, *(() if stop.ignore_eos else request.eos_token_ids)]
        if request.logprobs is not None:
            values["logprobs"] = request.logprobs
        if sampling.guided:
            values["structured_outputs"] = self._structure(sampling.guided)
        try:
            return self._make(**values)
        except self._refusals as error:
            raise invalid(error) from error

    def _structure(self, guided: Mapping[str, Any]) -> Any:
        if not self._guided:
            raise InvalidRequest(
                "This worker's vLLM has no tokenizer and cannot guide its output; start it with "
                "--engine-arg skip_tokenizer_init=false.",
                param="response_format",
            )
        unknown = sorted(set(guided) - set(_GUIDED))
        if unknown:
            raise InvalidRequest(
                f"Output cannot be guided by {unknown[0]!r}; use one of {', '.join(_GUIDED)}.", param="response_format"
            )
        try:
            return self._structured(**guided)
        except self._refusals as error:
            raise invalid(error, "response_format") from error


def invalid(error: BaseException, param: str | None = None) -> InvalidRequest:
    """What vLLM has against a request."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)  # str() of vLLM's adds its fields
    line = next((line.strip() for line in text.splitlines() if line.strip()), type(error).__name__)
    return InvalidRequest(line, param=param or getattr(error, "parameter", None))
