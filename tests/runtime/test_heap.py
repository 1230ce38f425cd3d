from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from dynamo_core.runtime import heap

LARGE_BLOCKS = """
import ctypes
from dynamo_core.runtime.heap import keep_heap_small, return_free_memory

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in ("arena", "ordblks", "smblks", "hblks", *"abcdef")]

library = ctypes.CDLL(None)
library.mallinfo2.restype = Info
keep_heap_small()
text = b"x" * (16 << 20)
del text  # left to itself, the library would serve blocks of this size from the heap from here on
before = library.mallinfo2().hblks
kept = b"x" * (8 << 20)
return_free_memory()
print(library.mallinfo2().hblks - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_a_large_block_has_pages_of_its_own_also_after_another_was_freed() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_BLOCKS], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "1"


LARGE_PAGES = """
import mmap
from pathlib import Path
from dynamo_core.runtime.heap import use_large_pages

def of(mapping, field):
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.startswith(f"{mapping:x}-"):
            return next(int(found.split()[1]) for found in lines if found.startswith(f"{field}:"))

def address(block):
    import ctypes
    return ctypes.addressof(ctypes.c_char.from_buffer(block))

full = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE)
between = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ)  # so that they stay two mappings
sparse = mmap.mmap(-1, 32 << 20, mmap.MAP_PRIVATE)
for block, step in ((full, 4096), (sparse, 16384)):
    block.madvise(mmap.MADV_NOHUGEPAGE)  # of kernels that give large pages unasked
    for at in range(0, len(block), step):
        block[at] = 7
    block.madvise(mmap.MADV_HUGEPAGE)
before = of(address(sparse), "Rss")
moved = use_large_pages()
assert all(full[at] == 7 for at in range(0, len(full), 4096))
print(moved, of(address(full), "AnonHugePages"), of(address(sparse), "Rss") - before)
"""


@pytest.mark.usefixtures("large_pages")
def test_memory_that_is_used_moves_to_large_pages_and_what_is_not_stays_as_it_is() -> None:
    done = subprocess.run([sys.executable, "-c", LARGE_PAGES], capture_output=True, text=True, timeout=60, check=True)
    moved, large, grown = map(int, done.stdout.split())
    assert moved >= large // 2048
    assert large >= 28 << 10
    assert grown < 1024


@pytest.mark.parametrize("enabled", ["always madvise [never]", None])
def test_without_large_pages_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enabled: str | None) -> None:
    if enabled is not None:
        (tmp_path / "hpage_pmd_size").write_text(f"{os.sysconf('SC_PAGE_SIZE')}\n")  # every page would be a large one
        (tmp_path / "enabled").write_text(f"{enabled}\n")
    monkeypatch.setattr(heap, "_LARGE_PAGES", tmp_path)
    monkeypatch.setattr(heap, "_used", lambda size: pytest.fail(f"looked for pages of {size}"))
    assert heap.use_large_pages() == 0
