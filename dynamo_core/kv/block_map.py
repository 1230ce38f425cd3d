"""From block hashes to the integers whose bits are their owners, in the order in which they came."""

from __future__ import annotations

import secrets
from array import array
from collections.abc import Iterable, Sequence
from itertools import chain, islice, repeat
from typing import Protocol

__all__ = ["BlockMap", "PythonBlockMap", "multiples", "new_block_map", "python_multiples"]


class BlockMap(Protocol):
    """Hashes are taken modulo 2⁶⁴ where it is compiled, and those of an ``array("Q")`` are read there as they are. It keeps the
    very integers that it is given for owners: let a bit be one object."""

    def __len__(self) -> int: ...
    def get(self, seq_hash: int, /) -> int:
        """The owners; 0 for none."""
        ...

    def add(self, bit: int, seq_hashes: Sequence[int], /) -> int:
        """Let each have this owner. Returns how many had it not; one that is named twice counts once."""
        ...

    def take(self, bits: int, seq_hashes: Sequence[int], rest: int, /) -> int:
        """Let each have no owners but those of ``rest``, none of which is in ``bits``, and be gone without any. Returns how many
        had one of ``bits``."""
        ...

    def hashes(self, bits: int = -1, /) -> list[int]:
        """Those with one of these owners."""
        ...

    def dispensable(self, bit: int, others: int, count: int, /) -> list[int]:
        """The oldest of an owner: first those that none of the ``others`` has, then those that one has."""
        ...

    def clear(self) -> None: ...


class PythonBlockMap:
    """75 to 120 bytes a block; compiled, 28 to 44."""

    __slots__ = ("_where",)

    def __init__(self) -> None:
        self._where: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._where)

    def get(self, seq_hash: int, /) -> int:
        return self._where.get(seq_hash, 0)

    def add(self, bit: int, seq_hashes: Sequence[int], /) -> int:
        where, known = self._where, len(self._where)
        held = list(map(where.setdefault, seq_hashes, repeat(bit)))
        new = len(where) - known
        if new < len(seq_hashes):  # somebody had some of them, or one is named twice
            before, after = 0, bit  # the blocks of a run nearly always have the same owners: one integer for all of them
            for seq_hash, owners in zip(seq_hashes, held, strict=True):
                if not owners & bit and not where[seq_hash] & bit:
                    if owners is not before:
                        before, after = owners, owners | bit
                    where[seq_hash] = after
                    new += 1
        return new

    def take(self, bits: int, seq_hashes: Sequence[int], rest: int, /) -> int:
        where = self._where
        held = list(map(where.get, seq_hashes, repeat(0)))
        if held.count(bits) == len(held):  # nobody else has them
            return list(map(where.pop, seq_hashes, repeat(0))).count(bits)
        gone, before, after = 0, 0, 0
        for seq_hash in seq_hashes:  # one that is named twice is not there any more
            owners = where.get(seq_hash, 0)
            if owners & bits:
                gone += 1
            if owners is not before:
                before, after = owners, owners & rest
            if after:
                where[seq_hash] = after
            elif owners:
                del where[seq_hash]
        return gone

    def hashes(self, bits: int = -1, /) -> list[int]:
        return list(self._where) if bits == -1 else [seq_hash for seq_hash, owners in self._where.items() if owners & bits]

    def dispensable(self, bit: int, others: int, count: int, /) -> list[int]:
        items = self._where.items()
        alone: Iterable[int] = (seq_hash for seq_hash, owners in items if owners & bit and not owners & others)
        shared: Iterable[int] = (seq_hash for seq_hash, owners in items if owners & bit and owners & others)
        return list(islice(chain(alone, shared), count))

    def clear(self) -> None:
        self._where.clear()


def python_multiples(hashes: Sequence[int], of: int, /) -> array[int]:
    """Those that ``of`` divides: a sample that is the same wherever it is drawn. Hashes have 64 bits."""
    return array("Q", [seq_hash for seq_hash in hashes if not seq_hash % of])


try:
    from dynamo_core.kv._block_map import BlockMap as _CompiledBlockMap
    from dynamo_core.kv._block_map import multiples
except ImportError:  # the package was built without a compiler
    multiples = python_multiples

    def new_block_map() -> BlockMap:
        return PythonBlockMap()

else:

    def new_block_map() -> BlockMap:
        return _CompiledBlockMap(secrets.randbits(64))
