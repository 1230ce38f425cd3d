"""Text to token ids and back, with the tokenizer of a model folder.

Encoding is fastokens' work where it gives the same ids as Hugging Face's ``tokenizers`` (5 to 8 times faster), else that of
``tokenizers``. Only one of them stays in memory; decoding needs neither, but the strings of the ids seen.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers

from dynamo_core.errors import InvalidRequest, StartupError
from dynamo_core.serving.detokenizer import Detokenizer, make_detokenizer
from dynamo_core.serving.model_folder import AddedToken, ModelFolder
from dynamo_core.serving.vocabulary import Vocabulary

__all__ = ["Tokenizer", "load_tokenizer"]

_log = logging.getLogger(__name__)

_SAMPLES = (
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

_LEAST_CHARACTERS = 1024

Frame = tuple[tuple[int, ...], tuple[int, ...]]
"""Ids before a text's and after them."""


class Tokenizer:
    """One model's tokenizer. ``encode`` may be called from any thread, the rest from the event loop's."""

    __slots__ = (
        "_encode", "_encode_batch", "_vocabulary", "added_tokens", "backend", "frame", "loop_characters", "token_id",
        "vocab_size",
    )  # fmt: skip

    def __init__(
        self,
        backend: Literal["fastokens", "tokenizers"],
        encoder: Any,
        vocabulary: Vocabulary,
        *,
        added_tokens: Sequence[AddedToken] = (),
        frame: Frame | None = None,
    ) -> None:
        self.backend = backend
        self._encode: Callable[..., Any] = encoder.encode
        self._encode_batch: Callable[..., Any] = getattr(encoder, "encode_batch_fast", encoder.encode_batch)
        self._vocabulary = vocabulary
        self.added_tokens = tuple(added_tokens)
        self.frame = frame
        """What ``add_special_tokens`` puts before and after the ids of any text; ``None`` if that depends on the text."""
        self.loop_characters = _characters_a_millisecond(encoder)
        """Text that is longer takes more than about a millisecond to encode here: better in a thread."""
        self.vocab_size = vocabulary.size
        """Ids are below this, but for vocabularies with gaps."""
        self.token_id: Callable[[str], int | None] = encoder.token_to_id
        """The id of a token's string."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Costs 0.2 µs a token with fastokens, 1.2 µs without. Special tokens that the text spells out count as such."""
        try:
            ids: list[int] = self._encode(text, add_special_tokens=add_special_tokens).ids
        except (TypeError, UnicodeEncodeError) as error:  # what either library raises for it
            raise InvalidRequest("the text holds half of a surrogate pair, which is no character", param="messages") from error
        return ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """As :meth:`encode`. Other threads run meanwhile, which :meth:`encode` does not allow; costs 20 µs more."""
        try:
            return [encoding.ids for encoding in self._encode_batch(list(texts), add_special_tokens=add_special_tokens)]
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest("the text holds half of a surrogate pair, which is no character", param="messages") from error

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        return self._vocabulary.decode(token_ids, skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """One token as a client may see it: with its leading space, U+FFFD for a part of a character."""
        table = self._vocabulary.table(False)
        text = table.text(token_id)
        return table.data[token_id].decode("utf-8", "replace") if text is None else text

    def token_bytes(self, token_id: int) -> bytes:
        """What the token adds to the text's UTF-8."""
        table = self._vocabulary.table(False)
        text = table.text(token_id)
        return table.data[token_id] if text is None else text.encode()

    def detokenizer(self, skip_special_tokens: bool = True, prompt_ids: Sequence[int] = ()) -> Detokenizer:
        return make_detokenizer(self._vocabulary.table(skip_special_tokens), prompt_ids)


def load_tokenizer(folder: ModelFolder) -> Tokenizer:
    """Read ``tokenizer.json``. Raises :class:`StartupError`.

    Blocks (without holding the interpreter's lock): 4 seconds for 262,144 tokens. Call it in a thread.
    """
    header = folder.tokenizer_header()
    # The one that stays is loaded first: loading takes twice what stays, and what the second one leaves behind can be given back.
    fast, obstacle = _load_fast(folder.tokenizer_json)
    _return_free_memory()
    try:
        reference = _load_reference(folder.tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise StartupError(
            f"{str(folder.tokenizer_json)!r} is not a tokenizer: {error}; fetch the model's files again"
        ) from error
    size = max([reference.get_vocab_size(), *(token.id + 1 for token in header.added_tokens)])
    special = [reference.token_to_id(token.content) for token in header.added_tokens if token.special]
    probe = _Probe.of(reference, header.added_tokens)
    if fast is not None:
        obstacle = probe.difference(fast)
    backend: Literal["fastokens", "tokenizers"] = "fastokens" if obstacle is None else "tokenizers"
    encoder: Any = fast if obstacle is None else reference
    if obstacle is not None:
        _log.info("%s is encoded with tokenizers instead of fastokens: %s", folder.tokenizer_json, obstacle)
    del fast, reference
    _return_free_memory()
    vocabulary = Vocabulary(encoder.id_to_token, size, [token_id for token_id in special if token_id is not None], header.decoder)
    return Tokenizer(backend, encoder, vocabulary, added_tokens=header.added_tokens, frame=probe.frame())


def _load_reference(path: Path) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    # Some models' files carry the settings that they were trained with; a server must neither cut nor fill prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_fast(path: Path) -> tuple[Any, str | None]:
    """``None`` and the reason where it is not installed or does not know this kind of tokenizer."""
    try:
        import fastokens

        tokenizer = fastokens.Tokenizer.from_file(str(path))
        tokenizer.no_truncation()
        tokenizer.no_padding()
    except ImportError:
        return None, "it is not installed"
    except Exception as error:  # noqa: BLE001 - whatever it cannot do, the reference can
        return None, f"{type(error).__name__}: {error}"
    return tokenizer, None


class _Probe(NamedTuple):
    """What the reference makes of the samples."""

    encodings: list[tuple[str, bool, list[int]]]
    tokens: dict[int, str | None]

    @classmethod
    def of(cls, reference: tokenizers.Tokenizer, added_tokens: Sequence[AddedToken]) -> _Probe:
        size = reference.get_vocab_size()
        tokens = [token for index in range(0, size, size // 500 + 1) if (token := reference.id_to_token(index)) is not None]
        spelt = [token.replace("▁", " ").replace("Ġ", " ") for token in tokens]
        encodings = [
            (text, add_special_tokens, reference.encode(text, add_special_tokens=add_special_tokens).ids)
            for text in (*_SAMPLES, *_around(added_tokens), *spelt, *map("".join, zip(spelt, reversed(spelt), strict=True)))
            for add_special_tokens in (False, True)
        ]
        seen = {token_id for _, _, ids in encodings for token_id in ids}
        seen.update(range(min(size, 1024)), (size - 1, size, size + 100_000), (token.id for token in added_tokens))
        return cls(encodings, {token_id: reference.id_to_token(token_id) for token_id in sorted(seen)})

    def frame(self) -> Frame | None:
        """See :attr:`Tokenizer.frame`."""
        plain = {text: ids for text, special, ids in self.encodings if not special}
        framed = {text: ids for text, special, ids in self.encodings if special}
        bare, full = plain["a"], framed["a"]
        start = next((at for at in range(len(full) - len(bare) + 1) if full[at : at + len(bare)] == bare), None)
        if start is None:
            return None
        before, after = tuple(full[:start]), tuple(full[start + len(bare) :])
        same = all(framed[text] == [*before, *ids, *after] for text, ids in plain.items())
        return (before, after) if same else None

    def difference(self, candidate: Any) -> str | None:
        """Where the candidate departs from the reference first; ``None`` if nowhere."""
        try:
            for text, add_special_tokens, ids in self.encodings:
                if candidate.encode(text, add_special_tokens=add_special_tokens).ids != ids:
                    return f"other ids for {text[:40]!r}"
            for token_id, token in self.tokens.items():
                if candidate.id_to_token(token_id) != token:
                    return f"another string for id {token_id}"
        except Exception as error:  # noqa: BLE001 - whatever it cannot do, the reference can
            return f"{type(error).__name__}: {error}"
        return None


def _characters_a_millisecond(encoder: Any) -> int:
    """Of prose. The samples, being repeated, go through about twice as fast."""
    text = "".join(_SAMPLES)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        encoder.encode(text, add_special_tokens=False)
        seconds.append(time.perf_counter() - begun)
    return max(_LEAST_CHARACTERS, int(len(text) / min(seconds) / 2000))


def _around(added_tokens: Sequence[AddedToken]) -> Iterator[str]:
    """Added tokens in every surrounding that their flags may care about."""
    for token in [*added_tokens[:24], *added_tokens[24:][-24:]]:
        yield from (token.content, f"a{token.content}b", f" a {token.content} b ", f"{token.content * 2}\n{token.content}.")


def _return_free_memory() -> None:
    """Give back to the system what loading left unused: 200 of 350 MB with 262,144 tokens. Only glibc has it and needs it."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (AttributeError, OSError):
        return
