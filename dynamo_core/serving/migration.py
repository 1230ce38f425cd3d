"""What a request looks like when another worker continues it.

The generated tokens become part of the prompt, so the other worker's next token is the one that the lost worker would have
produced, as long as sampling looks at nothing but the tokens before it. What looks at more is named by :func:`obstacle`.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from dynamo_core.contracts import EngineRequest, StopConditions

__all__ = ["obstacle", "remainder", "resumed"]


def remainder(request: EngineRequest, generated: Sequence[int]) -> int:
    """Tokens that are still allowed; 0 when only the finish reason got lost with the worker."""
    return max(0, request.stop.max_tokens - len(generated))


def resumed(request: EngineRequest, generated: Sequence[int]) -> EngineRequest:
    """``request`` (the original, of the first leg) as the next worker gets it; itself when nothing was generated."""
    if not generated:
        return request
    stop: StopConditions = msgspec.structs.replace(
        request.stop,
        max_tokens=remainder(request, generated),
        min_tokens=max(0, request.stop.min_tokens - len(generated)),
    )
    return msgspec.structs.replace(request, token_ids=[*request.token_ids, *generated], stop=stop)


def obstacle(request: EngineRequest) -> str | None:
    """Why a request that has produced tokens cannot be continued exactly; ``None`` when it can.

    Penalties count tokens of the output, which have become prompt; the state of a grammar and the prompt's own
    log-probabilities stay behind. A logit bias and ``min_tokens`` (reduced by what was generated) act the same on both
    sides. A seeded, sampled stream is continued from a fresh state of the seed: valid, not identical.
    """
    sampling = request.sampling
    if sampling.guided is not None:
        return "guided decoding cannot be continued"
    if sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty not in (None, 1.0):
        return "penalties cannot be continued"
    if request.prompt_logprobs is not None:
        return "prompt log-probabilities cannot be continued"
    return None
