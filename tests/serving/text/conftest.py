"""Small tokenizers of every kind, trained on the spot and written as model folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

CORPUS = [
    "The quick brown fox jumps over the lazy dog. It's 2026, isn't it? We've 1,234 reasons.",
    "def f(x):\n    if x >= 10:\n        return x ** 2\n\treturn None  # nothing\n",
    "naïve café Ångström, 你好世界 日本語 한국어 Привет мир שלום مرحبا ☃ 😀😁👩‍👧 ∑∫",
    "the the the then there these those other others another  two   three    spaces",
] * 3
SPECIALS = ["<unk>", "<s>", "</s>", "<|end of turn|>"]


def byte_level() -> Tokenizer:
    """As GPT-2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=420, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    tokenizer.add_tokens([AddedToken("<tool call>", normalized=False), AddedToken("ŉ☃", normalized=False)])
    return tokenizer


def byte_level_split() -> Tokenizer:
    """As Llama 3: a pattern of its own, whole words first, a beginning-of-sequence token."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    made = json.loads(byte_level().to_str())
    made["model"]["ignore_merges"] = True
    tokenizer = Tokenizer.from_str(json.dumps(made))
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def _with_bytes(tokenizer: Tokenizer, decoder: dict[str, Any]) -> Tokenizer:
    """Byte tokens put in after training, as SentencePiece has them."""
    made = json.loads(tokenizer.to_str())
    vocabulary = made["model"]["vocab"]
    for byte in range(256):
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    made["model"] |= {"byte_fallback": True, "fuse_unk": True, "unk_token": "<unk>"}
    made["decoder"] = decoder
    return Tokenizer.from_str(json.dumps(made))


def _sentence_pieces() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    printable = [chr(code) for code in range(ord("!"), ord("~") + 1)]
    trainer = trainers.BpeTrainer(
        vocab_size=300, limit_alphabet=110, initial_alphabet=printable, special_tokens=SPECIALS, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


SPACES = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
FALLBACK = {"type": "ByteFallback"}
FUSE = {"type": "Fuse"}


def strip(start: int, stop: int = 0) -> dict[str, Any]:
    return {"type": "Strip", "content": " ", "start": start, "stop": stop}


def sequence(*steps: dict[str, Any]) -> dict[str, Any]:
    return {"type": "Sequence", "decoders": list(steps)}


def llama() -> Tokenizer:
    tokenizer = _with_bytes(_sentence_pieces(), sequence(SPACES, FALLBACK, FUSE, strip(1)))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.pre_tokenizer = None
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


def gemma() -> Tokenizer:
    tokenizer = _with_bytes(_sentence_pieces(), sequence(SPACES, FALLBACK, FUSE))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    return tokenizer


def metaspace_bytes() -> Tokenizer:
    """Odd, but possible: the first token is spelt differently, and then up to two spaces go."""
    metaspace = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first", "split": True}
    return _with_bytes(_sentence_pieces(), sequence(metaspace, FALLBACK, FUSE, strip(2)))


def bytes_unfused() -> Tokenizer:
    return _with_bytes(_sentence_pieces(), sequence(SPACES, FALLBACK))


def unigram() -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    )
    return tokenizer


def word_piece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def words() -> Tokenizer:
    """No decoder: tokens are joined by spaces."""
    tokenizer = Tokenizer(models.WordLevel(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(CORPUS, trainers.WordLevelTrainer(special_tokens=SPECIALS, show_progress=False))
    return tokenizer


def word_ends() -> Tokenizer:
    """The last token of a text is spelt differently: only the whole decoder can tell."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.BPEDecoder()
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, end_of_word_suffix="</w>", show_progress=False)
    )
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    maker.__name__: maker
    for maker in (
        byte_level, byte_level_split, llama, gemma, metaspace_bytes, bytes_unfused, unigram, word_piece, words, word_ends,
    )
}  # fmt: skip


@pytest.fixture(scope="session")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of the tokenizer of that name."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            MAKERS[name]().save(str(folder / "tokenizer.json"))
            made[name] = folder
        return made[name]

    return get
