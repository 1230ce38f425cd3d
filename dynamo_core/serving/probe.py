"""Samples that tell whether two encoders give the same ids.

Speed comes from shortcuts, and one that is wrong for a model shows in text of a kind that few prompts have: so an encoder is
compared with the reference for each model, when it is loaded.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from dynamo_core.serving.model_folder import AddedToken

__all__ = ["SAMPLES", "Frame", "Probe"]

SAMPLES = (
    "", " ", "  ", "\n", "\n\n\n", "\t", "\r\n", "a", " a", "a ", "  a  b   c    ", " " * 100, "word\n" * 50 + "  indented\n\n",
    "Hello, world!", "The quick brown fox's 3 dogs.", "I'll we've THEY'RE don't Don'T", "....----====####****",
    "1", "12", "123", "1234567890", "3.14159 1,000,000 0x1F4A9 2026-11-22T16:05:00Z",
    "def f(x):\n    if x >= 10:\n\treturn x ** 2  # square\n\n\nprint(f(3))\n", '{"key": [1, 2.5, null], "s": "a\\"b\\n"}',
    "https://example.org/a/b?c=d&e=%20f#g user@example.org", "<html><body class='x'>&amp;</body></html>",
    "naïve café Ångström œuvre", "nai\u0308ve cafe\u0301", "ﬁ ½ ² Ⅷ ㎏ ＡＢＣ",
    "Ελληνικά Кириллица עברית العربية हिन्दी ภาษาไทย", "你好，世界。日本語テキスト 한국어", "😀👩‍👩‍👧‍👦🏳️‍🌈 🇩🇪 1️⃣ ❤️",
    "a\u00a0b\u2003c\u200bd\ufeffe\u2028f", "\x00\x01\x1f\x7f\x85", "\U0010ffff\ue000\ufffd",
    "▁a▁▁b ▁", "Ġa <0x0A> <0xE4>", "[CLS] <s> </s> <|endoftext|> <pad> <unk> <bos>",
    "x" * 300, "ab " * 200, "é" * 150, "Mixed 中文 and English, numbers ١٢٣ and ４５６; symbols ∑∫√ → ⇒.\n" * 20,
)  # fmt: skip
"""What tokenizers differ on: whitespace of every kind, digits, contractions, scripts, combining marks, controls, long words."""

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids before a text's and after them."""


class Probe(NamedTuple):
    """What the reference makes of the samples."""

    encodings: list[tuple[str, bool, array[int]]]
    tokens: dict[int, str | None]

    @classmethod
    def of(cls, reference: Any, added_tokens: Sequence[AddedToken]) -> Probe:
        size = reference.get_vocab_size()
        tokens = [token for index in range(0, size, size // 500 + 1) if (token := reference.id_to_token(index)) is not None]
        spelt = [token.replace("▁", " ").replace("Ġ", " ") for token in tokens]
        encodings = [
            (text, add_special_tokens, array("I", reference.encode(text, add_special_tokens=add_special_tokens).ids))
            for text in (*SAMPLES, *_around(added_tokens), *spelt, *map("".join, zip(spelt, reversed(spelt), strict=True)))
            for add_special_tokens in (False, True)
        ]
        seen = {token_id for _, _, ids in encodings for token_id in ids}
        seen.update(range(min(size, 1024)), (size - 1, size, size + 100_000), (token.id for token in added_tokens))
        return cls(encodings, {token_id: reference.id_to_token(token_id) for token_id in sorted(seen)})

    def frame(self) -> Frame | None:
        """What ``add_special_tokens`` puts before and after the ids of any text; ``None`` if that depends on the text."""
        plain = {text: ids for text, special, ids in self.encodings if not special}
        framed = {text: ids for text, special, ids in self.encodings if special}
        bare, full = plain["a"], framed["a"]
        start = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), None)
        if start is None:
            return None
        before, after = tuple(full[:start]), tuple(full[start + len(bare) :])
        same = all([*framed[text]] == [*before, *ids, *after] for text, ids in plain.items())
        return (before, after) if same else None

    def difference(
        self, encode: Callable[[str, bool], array[int]], token_of: Callable[[int], str | None] | None = None
    ) -> str | None:
        """Where another encoder departs from the reference first; ``None`` if nowhere."""
        try:
            for text, add_special_tokens, ids in self.encodings:
                if encode(text, add_special_tokens) != ids:
                    return f"other ids for {text[:40]!r}"
            for token_id, token in self.tokens.items():
                if token_of is not None and token_of(token_id) != token:
                    return f"another string for id {token_id}"
        except Exception as error:  # noqa: BLE001 - whatever it cannot do, the reference can
            return f"{type(error).__name__}: {error}"
        return None


def _around(added_tokens: Sequence[AddedToken]) -> Iterator[str]:
    """Added tokens in every surrounding that their flags may care about."""
    for token in [*added_tokens[:24], *added_tokens[24:][-24:]]:
        yield from (token.content, f"a{token.content}b", f" a {token.content} b ", f"{token.content * 2}\n{token.content}.")
