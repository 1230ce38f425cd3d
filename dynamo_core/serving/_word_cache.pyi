# Compiled from _word_cache.c when the package is built with a C compiler at hand; otherwise it is not there.

from collections.abc import Callable, Sequence

# An encoder that remembers words, 64 bytes each.
#
# `encode` turns texts into ids, 4 bytes each in the machine's order; a text that is not the beginning of one comes to it after
# `context`, whose own ids, `skipped` in number, are left out. Text is cut before a space, after any of the bytes `after`, which
# is none of them. For `lengths` and `ascii` see word_cuts.WordCuts. `entries`: words remembered at most. Raises ValueError.
class WordCache:
    def __init__(
        self,
        encode: Callable[[list[str]], Sequence[bytes]],
        context: str,
        skipped: int,
        after: bytes,
        lengths: bytes,
        ascii: bool,
        entries: int,
    ) -> None: ...
    # The ids of the text, 4 bytes each. Raises UnicodeEncodeError for half a surrogate pair, and what `encode` raises.
    def encode(self, text: str) -> bytes: ...
    # The same; `None`, and nothing is asked, where `encode` would be asked for more than `most` bytes.
    def recall(self, text: str, most: int) -> bytes | None: ...
    @property
    def hits(self) -> int: ...  # words found
    @property
    def misses(self) -> int: ...  # words that the encoder was asked for
