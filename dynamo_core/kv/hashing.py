"""Names of KV blocks, equal in every process and, but for the cache salt, equal to Dynamo's (``public-xxh3-v1``).

``block[i] = xxh3_64(little-endian u32 token ids, seed)`` names the content of a full block wherever it stands;
``seq[0] = block[0]``, ``seq[i] = xxh3_64(seq[i-1] ‖ block[i], 1337)`` (little-endian u64) names it together with its prefix.
The seed is 1337, to which a LoRA adapter adds ``xxh3_64(name, 0)`` and a cache salt ``xxh3_64(salt, seed so far)``,
so that neither adapters nor tenants share blocks.

A block of 16 tokens costs about 0.06 µs for its block hash (0.12 if its ids are in a list, of which bytes are made) and 0.1 µs
more for its sequence hash. :class:`PromptHashes` computes no more of them than someone looks at, and with a :class:`HashCache`
those of a prefix that was seen before are looked up, 16 blocks at a time.
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
    "HashCache",
    "PromptHashes",
    "block_hash",
    "block_hashes",
    "chain",
    "hash_seed",
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
    return _digests(token_bytes(token_ids)[: 4 * full], block_size, hash_seed(lora, salt))


def _digests(data: memoryview, block_size: int, seed: int) -> list[int]:
    """Of a whole number of blocks. Passes in C: nothing is done in Python for each block."""
    block = f"{4 * block_size}s"
    whole = len(data) - len(data) % (4 * block_size * _UNPACKED)
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
    return chain(block_hashes(token_ids, block_size, lora=lora, salt=salt))


class HashCache:
    """Sequence hashes of prefixes that were seen, in chunks of 16 blocks. For one block size; not thread-safe.

    A chunk's key is the 64-bit hash of its tokens with what names all before it (the hash of the block before, or the seed of the
    adapter and tenant) as seed, so that it is as exact as the hashes it stands for. Two generations of ``limit`` ÷ 2 chunks: when
    the younger is full, the older is dropped. A chunk takes about 800 bytes.
    """

    __slots__ = ("_half", "_old", "_young")

    BLOCKS = 16
    """Of a chunk."""

    def __init__(self, limit: int = 8192) -> None:
        self._half = max(1, limit // 2)
        self._young: dict[int, tuple[int, ...]] = {}
        self._old: dict[int, tuple[int, ...]] = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)

    def get(self, key: int) -> tuple[int, ...] | None:
        found = self._young.get(key)
        if found is None:
            found = self._old.pop(key, None)
            if found is not None:
                self.put(key, found)
        return found

    def put(self, key: int, hashes: tuple[int, ...]) -> None:
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = hashes


class PromptHashes:
    """The sequence hashes of one prompt, computed only as far as someone looks: a prompt that nobody has costs a few blocks.

    ``cache`` remembers them for the next prompt that begins alike, such as the next turn of a conversation.
    """

    __slots__ = ("_block_size", "_cache", "_data", "_seed", "_tokens", "count", "known")

    def __init__(
        self,
        token_ids: Sequence[int],
        block_size: int,
        *,
        lora: str | None = None,
        salt: str | None = None,
        cache: HashCache | None = None,
    ) -> None:
        self._tokens = token_ids
        self._block_size = block_size
        self._seed = hash_seed(lora, salt) if lora or salt else SEED
        self._cache = cache
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
            chunk = HashCache.BLOCKS
            self._extend(min(self.count, -(-count // chunk) * chunk))
            if len(known) == self.count:
                self._tokens, self._data = (), None  # whoever keeps the hashes shall not keep the prompt
        return known

    def _extend(self, end: int) -> None:
        """Whole chunks until ``end``; the first from its own tokens, the others from bytes made of all tokens in one go."""
        known, cache, block = self.known, self._cache, 4 * self._block_size
        data = self._data
        if data is None:
            if known or end > HashCache.BLOCKS or end == self.count:
                data = self._data = token_bytes(self._tokens)
            else:
                data = token_bytes(self._tokens[: end * self._block_size])
        if cache is None:
            self._compute(data[block * len(known) : block * end])
            return
        digest, chunk = xxh3_64_intdigest, HashCache.BLOCKS
        step = block * chunk
        at = block * len(known)
        while at + step <= block * end:
            found = cache.get(digest(data[at : at + step], known[-1] if known else self._seed))
            if found is None:
                break
            known += found
            at += step
        if at == block * end:
            return
        start = len(known)
        self._compute(data[at : block * end])
        for first in range(start, end - chunk + 1, chunk):
            key = digest(data[first * block : first * block + step], known[first - 1] if first else self._seed)
            cache.put(key, tuple(known[first : first + chunk]))

    def _compute(self, data: memoryview) -> None:
        known, digest, pair = self.known, xxh3_64_intdigest, _pair
        blocks = _digests(data, self._block_size, self._seed)
        if not known:
            known.append(blocks[0])
            del blocks[0]
        previous = known[-1]
        for block in blocks:
            previous = digest(pair(previous, block), SEED)
            known.append(previous)
