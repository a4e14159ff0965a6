"""Hashes of files: of all that is in them, or, where that takes too long, of what tells a change."""

from __future__ import annotations

import os
from collections.abc import Iterable

import xxhash

HASHED_WHOLE_BYTES = 2**30
"""Files of up to this size together are known by their contents."""
BLOCK_BYTES = 2**20


def hash_file(path: str | os.PathLike[str]) -> str:
    """XXH3 of a file's content, 32 hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with open(path, "rb") as stream:
        while block := stream.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sampled_hash(path: str | os.PathLike[str]) -> str:
    """Hash a file's size, and a MiB each at its start, in its middle and at its end."""
    size = os.path.getsize(path)
    digest = xxhash.xxh3_128(str(size).encode())
    with open(path, "rb") as stream:
        for start in (0, size // 2, max(size - BLOCK_BYTES, 0)):
            stream.seek(start)
            digest.update(stream.read(BLOCK_BYTES))
    return digest.hexdigest()


def fit_to_hash_whole(paths: Iterable[str | os.PathLike[str]]) -> bool:
    """Whether files are small enough, together, to be known by their contents."""
    return sum(map(os.path.getsize, paths)) <= HASHED_WHOLE_BYTES
