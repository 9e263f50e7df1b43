"""How much is computed at once: what fits into memory, and what fits into the caches."""

import ctypes
import os
from functools import cache

import torch

from certood.analysis.bounds.graph import Graph

MEMORY_SHARE = 0.25
# Coefficients, their relaxed copies and what a transposed convolution keeps stand in memory at once.
COPIES = 8
# More rows at once than fill so many bytes per layer gain nothing: what does not fit into the caches is slower.
CHUNK_BYTES = 2**23
# Images are taken in parts in which so many rows of each image, and their negatives, are a chunk.
ROWS_AT_ONCE = 64
# The numbers of two parameters of glibc's mallopt, and how much it may keep.
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3
KEPT = 2**28


@cache
def keep_freed_blocks() -> None:
    """Let glibc's allocator keep what is freed, up to KEPT bytes, instead of returning it to the system at once.

    The system maps and zeroes it again page by page, which takes longer than what is computed in it. Other allocators are
    left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    mallopt(MMAP_THRESHOLD, 2**25)
    mallopt(TRIM_THRESHOLD, KEPT)


def default_memory() -> float:
    """A quarter of the memory that is free now."""
    try:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        free = 2**32
    return MEMORY_SHARE * free


def images_at_once(graph: Graph, max_memory: float, dtype: torch.dtype, method: str) -> int:
    """How many images are best analysed together: as many as fit into memory, and for rows no more than fit into the caches."""
    row = row_memory(graph, dtype)
    most = max(1, int(max_memory // row))
    return most if method == "interval" else max(1, min(most, int(CHUNK_BYTES // (2 * ROWS_AT_ONCE * row // COPIES))))


def row_memory(graph: Graph, dtype: torch.dtype) -> int:
    """Bytes that one row of linear bounds takes for one image."""
    return COPIES * dtype.itemsize * max(node.shape.numel() for node in graph.nodes)
