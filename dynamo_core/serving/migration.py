"""What a request looks like when another worker continues it.

The generated tokens become part of the prompt, so the other worker's next token is the one that the lost worker would have
produced, as long as sampling looks at nothing but the tokens before it. What looks at more is named by :func:`obstacle`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from dynamo_core.contracts import EngineRequest, Resume, StopConditions

__all__ = ["obstacle", "remainder", "resumed"]

_NOTHING_SPECIAL: Mapping[str, Resume] = {}
_MOST_ENGINES: Mapping[str, Resume] = {
    "guided": "none",
    "penalties": "none",
    "prompt_logprobs": "none",
    "min_tokens": "exact",
    "logit_bias": "exact",
    "seed": "exact",
}
_WORDS = {
    "guided": "guided decoding",
    "penalties": "penalties",
    "prompt_logprobs": "prompt log-probabilities",
    "min_tokens": "min_tokens",
    "logit_bias": "a logit bias",
    "seed": "the state of a seed",
}


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


def obstacle(request: EngineRequest, resume: Mapping[str, Resume] = _NOTHING_SPECIAL) -> str | None:
    """Why a request that has produced tokens cannot be continued exactly; ``None`` when it can. ``resume``: what the engine says.

    Unless it says otherwise, penalties count tokens of the output, which have become prompt; the state of a grammar and the
    prompt's own log-probabilities stay behind. A logit bias and ``min_tokens`` (reduced by what was generated) act the same on
    both sides. A seeded, sampled stream is continued from a fresh state of the seed: valid, not identical.
    """
    greedy = request.sampling.temperature == 0
    for feature, words in _WORDS.items():
        how = resume.get(feature, _MOST_ENGINES[feature])
        if how != "exact" and not (how == "greedy-only" and greedy) and _uses(request, feature):
            return f"{words} cannot be continued"
    return None


def _uses(request: EngineRequest, feature: str) -> bool:
    sampling = request.sampling
    if feature == "penalties":
        return bool(
            sampling.frequency_penalty or sampling.presence_penalty or sampling.repetition_penalty not in {None, 1.0}
        )  # fmt: skip
    if feature == "min_tokens":
        return request.stop.min_tokens > 0
    if feature == "prompt_logprobs":
        return request.prompt_logprobs is not None
    return getattr(sampling, feature) is not None
