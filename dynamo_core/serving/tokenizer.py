"""Text to token ids and back, with the tokenizer of a model folder.

Encoding is fastokens' work where it gives the same ids as Hugging Face's ``tokenizers`` (5 to 8 times faster), else that of
``tokenizers``, which loads twice as fast and so serves until fastokens is loaded and compared. Only one of them stays in memory;
decoding needs neither, but the strings of the ids seen.

Words that were seen before are copied from a table where the tokenizer lets text be cut into words (see
:mod:`dynamo_core.serving.word_cuts`) and the encoder does not do that by itself: a fifth of fastokens' time for SentencePiece's
vocabularies, a hundredth of that of ``tokenizers``.
"""

from __future__ import annotations

import logging
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tokenizers

from dynamo_core.errors import InvalidRequest, StartupError
from dynamo_core.runtime.heap import return_free_memory
from dynamo_core.serving.detokenizer import Detokenizer, make_detokenizer
from dynamo_core.serving.model_folder import AddedToken, ModelFolder, TokenizerHeader
from dynamo_core.serving.probe import SAMPLES, Probe
from dynamo_core.serving.vocabulary import Vocabulary
from dynamo_core.serving.word_cuts import CONTEXT, word_cuts

__all__ = ["Tokenizer", "load_tokenizer"]

_log = logging.getLogger(__name__)

_LEAST_CHARACTERS = 1024

_PATIENCE = 500
"""How often a thread that still encodes with the reference is waited for, 10 ms each time."""

_HALF_A_PAIR = "the text holds half of a surrogate pair, which is no character"

_WORDS = 1 << 15
"""Remembered at most, in 2 MB."""


class _Encode(NamedTuple):
    one: Callable[[str, bool], array[int]]
    batch: Callable[[Sequence[str], bool], list[array[int]]]
    each: Callable[[list[str]], list[bytes]]
    """Without special tokens, 4 bytes an id. For short texts."""
    recall: Callable[[str, int], array[int] | None] = lambda _text, _most: None
    """See :meth:`Tokenizer.recall`."""


class _Untried(NamedTuple):
    """A tokenizer's way to become faster."""

    path: Path
    reference: tokenizers.Tokenizer
    probe: Probe
    header: TokenizerHeader


class Tokenizer:
    """One model's tokenizer. ``encode`` may be called from any thread, the rest from the event loop's."""

    __slots__ = (
        "_batch", "_one", "_recall", "_untried", "_vocabulary", "added_tokens", "backend", "frame", "loop_characters", "token_id",
        "vocab_size",
    )  # fmt: skip

    def __init__(self, untried: _Untried, vocabulary: Vocabulary, added_tokens: Sequence[AddedToken]) -> None:
        self._vocabulary = vocabulary
        self.added_tokens = tuple(added_tokens)
        self.frame = untried.probe.frame()
        """What ``add_special_tokens`` puts before and after the ids of any text; ``None`` if that depends on the text."""
        self.vocab_size = vocabulary.size
        """Ids are below this, but for vocabularies with gaps."""
        self._untried: _Untried | None = untried
        self._use("tokenizers", untried.reference, _listed(untried.reference))

    def _use(self, backend: Literal["fastokens", "tokenizers"], encoder: Any, encode: _Encode) -> None:
        """Whatever encodes at this moment does so with the one before: both give the same ids."""
        self.backend = backend
        self._one, self._batch = encode.one, encode.batch
        self._recall = encode.recall
        self.loop_characters = _characters_a_millisecond(self._one)
        """Text that is longer takes more than about a millisecond to encode here: better in a thread."""
        self.token_id: Callable[[str], int | None] = encoder.token_to_id
        """The id of a token's string."""
        self._vocabulary.token = encoder.id_to_token

    @property
    def hastens(self) -> bool:
        """Whether :meth:`hasten` was not called yet."""
        return self._untried is not None

    def hasten(self) -> None:
        """Change to fastokens where it gives the same ids, and give back the memory of the other.

        Takes 4 seconds for 262,144 tokens, mostly without the interpreter's lock: call it in a thread, and once. Requests may run
        meanwhile. A thread of its own keeps what stays in memory apart from what goes, which saves 20 MB.
        """
        untried, self._untried = self._untried, None
        if untried is None:
            return
        path, reference, probe, header = untried
        del untried
        fast, obstacle = _load_fast(path)
        return_free_memory()
        if fast is not None:
            obstacle = probe.difference(_flat(fast).one, fast.id_to_token) or _unlike(header)
        if obstacle is not None:
            _log.info("%s is encoded with tokenizers instead of fastokens: %s", path, obstacle)
            del fast
            self._use("tokenizers", reference, _by_words(_listed(reference), reference, header, probe))
        else:
            encode = _flat(fast)
            if not header.byte_level:  # fastokens remembers words by itself where they are told apart before the merging
                encode = _by_words(encode, reference, header, probe)
            self._use("fastokens", fast, encode)
            for _ in range(_PATIENCE):
                if sys.getrefcount(reference) <= 2:  # nobody else has it, nor any of its methods
                    _empty(reference)
                    break
                time.sleep(0.01)
        del reference
        return_free_memory()

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """As :meth:`pack`."""
        return self.pack(text, add_special_tokens).tolist()

    def pack(self, text: str, add_special_tokens: bool = True) -> array[int]:
        """Costs 0.01 to 0.08 µs a token with fastokens, 1.4 µs without. Special tokens that the text spells out count as such."""
        try:
            return self._one(text, add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:  # what either library raises for it
            raise InvalidRequest(_HALF_A_PAIR, param="messages") from error

    def recall(self, text: str, most: int) -> array[int] | None:
        """As :meth:`pack` without special tokens, but ``None`` where more than ``most`` bytes are of words not seen before, and
        where no words are remembered. 2 to 5 µs for 1,000 characters, and up to 200 for 1,000 bytes not seen."""
        try:
            return self._recall(text, most)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(_HALF_A_PAIR, param="messages") from error

    def pack_all(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[array[int]]:
        """As :meth:`pack`, and other threads run meanwhile, but for the lookup of words: 2 ms for 1 MB."""
        try:
            return self._batch(texts, add_special_tokens)
        except (TypeError, UnicodeEncodeError) as error:
            raise InvalidRequest(_HALF_A_PAIR, param="messages") from error

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


def load_tokenizer(folder: ModelFolder, *, hastened: bool = True) -> Tokenizer:
    """Read ``tokenizer.json``. Raises :class:`StartupError`.

    Blocks: 1.5 seconds for 262,144 tokens, with the interpreter's lock held, and 4 more where it is to be ``hastened`` at once.
    Otherwise :meth:`Tokenizer.hasten` does that later; until then it is slower and takes as much memory.
    """
    header = folder.tokenizer_header()
    try:
        reference = _load_reference(folder.tokenizer_json)
    except Exception as error:  # the library raises bare Exception
        raise StartupError(
            f"{str(folder.tokenizer_json)!r} is not a tokenizer: {error}; fetch the model's files again"
        ) from error
    return_free_memory()
    size = max([reference.get_vocab_size(), *(token.id + 1 for token in header.added_tokens)])
    special = [reference.token_to_id(token.content) for token in header.added_tokens if token.special]
    vocabulary = Vocabulary(
        reference.id_to_token, size, [token_id for token_id in special if token_id is not None], header.decoder
    )
    untried = _Untried(folder.tokenizer_json, reference, Probe.of(reference, header.added_tokens), header)
    tokenizer = Tokenizer(untried, vocabulary, header.added_tokens)
    del untried, reference
    if hastened:
        tokenizer.hasten()
    return tokenizer


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


def _unlike(header: TokenizerHeader) -> str | None:
    """What fastokens does otherwise where samples rarely show it."""
    single = next((token.content for token in header.added_tokens if token.single_word), None)
    return None if single is None else f"it finds {single!r}, which is to stand alone, beside other added tokens"


def _flat(encoder: Any) -> _Encode:
    """fastokens' ids as bytes: a seventh faster than as a list, for which it would make and keep 8 MB of integers besides."""
    encode = encoder.encode_batch_flat

    def one(text: str, special: bool) -> array[int]:
        ids = array("I")
        ids.frombytes(encode([text], add_special_tokens=special)[0])
        return ids

    def batch(texts: Sequence[str], special: bool) -> list[array[int]]:
        return [one(text, special) for text in texts]  # several long ones at once make it keep 32 MB for good

    def each(texts: list[str]) -> list[bytes]:
        return [encode([text], add_special_tokens=False)[0] for text in texts]

    return _Encode(one, batch, each)


def _listed(encoder: Any) -> _Encode:
    encode, encode_batch = encoder.encode, encoder.encode_batch_fast

    def one(text: str, special: bool) -> array[int]:
        return _packed(encode(text, add_special_tokens=special).ids)

    def batch(texts: Sequence[str], special: bool) -> list[array[int]]:
        return [_packed(encoding.ids) for encoding in encode_batch(list(texts), add_special_tokens=special)]

    def each(texts: list[str]) -> list[bytes]:
        return [one(text, False).tobytes() for text in texts]

    return _Encode(one, batch, each)


def _by_words(encode: _Encode, reference: tokenizers.Tokenizer, header: TokenizerHeader, probe: Probe) -> _Encode:
    """The same ids with every word encoded once; as it was where the tokenizer does not allow that."""
    try:
        from dynamo_core.serving._word_cache import WordCache
    except ImportError:  # the package was built without a compiler
        return encode
    plain = encode.one
    cuts = word_cuts(reference, header, plain)
    if cuts is None:
        return encode
    words = WordCache(encode.each, CONTEXT, len(plain(CONTEXT, False)), *cuts, _WORDS)

    def one(text: str, special: bool) -> array[int]:
        if special:  # what is added may depend on the whole
            return plain(text, True)
        ids = array("I")
        ids.frombytes(words.encode(text))
        return ids

    def recall(text: str, most: int) -> array[int] | None:
        found = words.recall(text, most)
        if found is None:
            return None
        ids = array("I")
        ids.frombytes(found)
        return ids

    def batch(texts: Sequence[str], special: bool) -> list[array[int]]:
        return [one(text, special) for text in texts]

    for _ in range(2):  # the second time from memory
        if (difference := probe.difference(one)) is not None:
            _log.warning("words are encoded anew each time: remembered, they give %s", difference)
            return encode
    return _Encode(one, batch, encode.each, recall)


def _packed(token_ids: list[int]) -> array[int]:
    ids = array("I")
    ids.fromlist(token_ids)  # a third faster than array("I", token_ids)
    return ids


def _characters_a_millisecond(encode: Callable[[str, bool], array[int]]) -> int:
    """Of prose. The samples, being repeated, go through about twice as fast."""
    text = "".join(SAMPLES)
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        encode(text, False)
        seconds.append(time.perf_counter() - begun)
    return max(_LEAST_CHARACTERS, int(len(text) / min(seconds) / 2000))


def _empty(reference: tokenizers.Tokenizer) -> None:
    """Free a vocabulary while other threads run: the end of a tokenizer holds the interpreter's lock, 0.2 s for a large one.

    Trained on nothing, it has nothing left; and training is without the lock.
    """
    model = reference.model
    if isinstance(model, tokenizers.models.BPE):
        trainer = model.get_trainer()
        trainer.show_progress = False
        reference.train([], trainer)
