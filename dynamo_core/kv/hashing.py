"""Names of KV blocks, equal in every process and, but for the cache salt, equal to Dynamo's (``public-xxh3-v1``).

``block[i] = xxh3_64(little-endian u32 token ids, seed)`` names the content of a full block wherever it stands;
``seq[0] = block[0]``, ``seq[i] = xxh3_64(seq[i-1] ‖ block[i], 1337)`` (little-endian u64) names it together with its prefix.
The seed is 1337, to which a LoRA adapter adds ``xxh3_64(name, 0)`` and a cache salt ``xxh3_64(salt, seed so far)``,
so that neither adapters nor tenants share blocks.

The sequence hash of a block of 16 tokens costs 0.02 µs compiled (``_hashes.c``) and 0.2 in Python, and 0.06 more if its ids are
in a list, of which bytes are made. :class:`PromptHashes` computes no more of them than someone looks at.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain as joined
from itertools import repeat
from struct import Struct, iter_unpack

from xxhash import xxh3_64_intdigest

__all__ = [
    "SEED",
    "PromptHashes",
    "block_hash",
    "block_hashes",
    "chain",
    "hash_seed",
    "python_run_hashes",
    "run_hashes",
    "sequence_hashes",
    "token_bytes",
]

SEED = 1337

_MASK = 0xFFFF_FFFF_FFFF_FFFF
_UNPACKED = 16
"""Blocks made into objects at once: a tuple for each costs as much as hashing it."""
_pair = Struct("<QQ").pack
_WORD = next(code for code in "IL" if array(code).itemsize == 4)


def hash_seed(lora: str | None = None, salt: str | None = None) -> int:
    """The seed of block hashes for one adapter and one tenant."""
    seed = SEED
    if lora:
        seed = (seed + xxh3_64_intdigest(lora.encode(), 0)) & _MASK
    if salt:
        seed = (seed + xxh3_64_intdigest(salt.encode(), seed)) & _MASK
    return seed


def token_bytes(token_ids: Iterable[int]) -> memoryview:
    """The ids as little-endian u32; no copy is made of an ``array("I")``.

    Raises :class:`OverflowError` for an id that is negative or above 2³²−1.
    """
    if isinstance(token_ids, array) and token_ids.typecode == _WORD:
        words = token_ids
    elif isinstance(token_ids, list):
        words = array(_WORD)
        words.fromlist(token_ids)  # twice as fast as array(_WORD, token_ids)
    else:
        words = array(_WORD, token_ids)
    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    return memoryview(words).cast("B")


def token_array(data: bytes) -> array[int]:
    """The ids of which these are the :func:`token_bytes`. Raises :class:`ValueError` for bytes that end within one."""
    words = array(_WORD)
    words.frombytes(data)
    if sys.byteorder == "big":
        words.byteswap()
    return words


def block_hashes(token_ids: Sequence[int], block_size: int, *, lora: str | None = None, salt: str | None = None) -> list[int]:
    """One hash a full block; the incomplete last block has none."""
    full = len(token_ids) // block_size * block_size
    return _digests(token_bytes(token_ids)[: 4 * full], 4 * block_size, hash_seed(lora, salt))


def _digests(data: memoryview, size: int, seed: int) -> list[int]:
    """Of a whole number of blocks of ``size`` bytes. Passes in C: nothing is done in Python for each block."""
    block = f"{size}s"
    whole = len(data) - len(data) % (size * _UNPACKED)
    blocks = joined.from_iterable(joined(iter_unpack(block * _UNPACKED, data[:whole]), iter_unpack(block, data[whole:])))
    return list(map(xxh3_64_intdigest, blocks, repeat(seed)))


def block_hash(token_ids: Iterable[int], seed: int = SEED) -> int:
    """The hash of one block's tokens."""
    return xxh3_64_intdigest(token_bytes(token_ids), seed)


def chain(blocks: Iterable[int], parent: int | None = None) -> list[int]:
    """Sequence hashes of successive blocks after the block named ``parent`` (``None``: from the start)."""
    digest, pair = xxh3_64_intdigest, _pair
    hashes: list[int] = []
    for block in blocks:
        parent = block if parent is None else digest(pair(parent, block), SEED)
        hashes.append(parent)
    return hashes


def sequence_hashes(token_ids: Sequence[int], block_size: int, *, lora: str | None = None, salt: str | None = None) -> list[int]:
    """The name of every full block of a prompt together with its prefix."""
    return run_hashes(token_bytes(token_ids), 4 * block_size, hash_seed(lora, salt), None)


def python_run_hashes(data: memoryview, size: int, seed: int, parent: int | None, /) -> list[int]:
    """Sequence hashes of the whole blocks of ``size`` bytes in ``data``, after the block named ``parent``."""
    return chain(_digests(data[: len(data) - len(data) % size], size, seed), parent)


try:
    from dynamo_core.kv._hashes import run_hashes
except ImportError:  # the package was built without a compiler
    run_hashes = python_run_hashes


class PromptHashes:
    """The sequence hashes of one prompt, computed only as far as someone looks: a prompt that nobody has costs a few blocks."""

    __slots__ = ("_block_size", "_data", "_seed", "_tokens", "count", "known")

    AT_ONCE = 16
    """Blocks that are hashed at least when somebody looks."""

    def __init__(self, token_ids: Sequence[int], block_size: int, *, lora: str | None = None, salt: str | None = None) -> None:
        self._tokens = token_ids
        self._block_size = block_size
        self._seed = hash_seed(lora, salt) if lora or salt else SEED
        self._data: memoryview | None = None
        self.count = len(token_ids) // block_size
        """Full blocks of the prompt."""
        self.known: list[int] = []
        """The hashes computed so far."""

    @classmethod
    def of(cls, seq_hashes: Sequence[int]) -> PromptHashes:
        """Of a prompt whose hashes somebody else has computed."""
        prompt = cls((), 1)
        prompt.known = list(seq_hashes)
        prompt.count = len(prompt.known)
        return prompt

    def upto(self, count: int) -> list[int]:
        """:attr:`known`, with the first ``count`` at least (all, if there are fewer). Not to be changed by the caller."""
        known = self.known
        if count > len(known) and len(known) < self.count:
            self._extend(min(self.count, -(-count // self.AT_ONCE) * self.AT_ONCE))
            if len(known) == self.count:
                self._tokens, self._data = (), None  # whoever keeps the hashes shall not keep the prompt
        return known

    def _extend(self, end: int) -> None:
        """Of a list of tokens, the first blocks are made of their own, the others of bytes made of all in one go."""
        known, data, size = self.known, self._data, 4 * self._block_size
        if data is None:
            data = token_bytes(self._tokens[: end * self._block_size] if not known and end < self.count else self._tokens)
            if len(data) >= self.count * size:
                self._data = data
        known += run_hashes(data[size * len(known) : size * end], size, self._seed, known[-1] if known else None)
