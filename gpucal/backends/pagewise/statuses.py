"""Statuses of pages and columns. The compiled functions and the kernels of a GPU give the same numbers."""

from __future__ import annotations

__all__ = [
    "ASKED",
    "BLOCK",
    "COUNT",
    "DICTIONARY_GONE",
    "DONE",
    "ENCODED",
    "HEADER",
    "INDEX",
    "LEVELS_WRONG",
    "LITERALS",
    "NULLS",
    "OTHER",
    "RANGE",
    "ROWS",
    "RUN",
    "SEQUENCES",
    "SIZES",
    "SIZE_WRONG",
    "STATUSES",
    "STREAMS",
    "TOLD",
    "TREE",
    "TREELESS",
    "WIDTH",
]

# What became of a page that was to be inflated. Everything but DONE is a reason to leave it to a whole zstd:
#   HEADER     magic number, not one segment, a checksum or dictionary, reserved bits
#   SIZES      the content's is not the page's; bytes missing, or left over
#   BLOCK      type or size of a block
#   LITERALS   header of the literals
#   TREE       Huffman tree
#   STREAMS    Huffman streams
#   SEQUENCES  there are some, or bytes behind the literals
#   TREELESS   the tree of the block before, where there is none
#   OTHER      another codec
DONE, HEADER, SIZES, BLOCK, LITERALS, TREE, STREAMS, SEQUENCES, TREELESS, OTHER = range(10)

# What is wrong with a column, see `STATUSES`; DONE if nothing is.
LEVELS_WRONG, NULLS, WIDTH, RUN, COUNT, INDEX, RANGE, ROWS, DICTIONARY_GONE, SIZE_WRONG, ENCODED = range(1, 12)

STATUSES = (
    "",
    "has definition levels that are not those of its values",
    "holds nulls",
    "has indices of more bits than a dictionary of 16-bit numbers needs",
    "has a run that ends outside of it",
    "has runs of more or fewer values than it",
    "has an index beyond its dictionary",
    "holds counts outside 0 to 65535",
    "holds more or fewer values than the file has rows",
    "is coded by a dictionary that is not there",
    "has another size than its values",
    "is of an encoding that is not decoded here",
)
"""The problem of a page, by its status; empty for 0."""

ASKED = frozenset({LEVELS_WRONG, NULLS, WIDTH, COUNT})
"""Statuses of what another reader may find sound."""

TOLD = ASKED | {RANGE}
"""Statuses of which another reader has more to say, such as which counts."""
