# Compiled from _hashes.c when the package is built with a C compiler at hand; otherwise there is hashing.python_run_hashes.

# See hashing.python_run_hashes. Raises ValueError for blocks of fewer than 4 bytes.
def run_hashes(data: memoryview, size: int, seed: int, parent: int | None, /) -> list[int]: ...
