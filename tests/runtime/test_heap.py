from __future__ import annotations

import platform
import subprocess
import sys

import pytest

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
