# SPDX-License-Identifier: Apache-2.0
"""The ids of a group's devices: there may be a million, and all are held while devices are read."""

from hashlib import blake2b

WIDTH = 8
BUCKETS = 2**12


class Ids:
    """A set that only grows. An id takes 8 bytes; in Python's own it would take 130.

    They are a digest's, whose first 12 bits say in which bucket the other 64 lie. Of ten thousand million
    readings of a million devices in a group of a million, one would take a device for a member that is none.
    """

    def __init__(self) -> None:
        self._buckets = [bytearray() for _ in range(BUCKETS)]

    def add(self, each: str) -> None:
        """Have it in the set; it may be there."""
        if each not in self:
            bucket, digest = self._place(each)
            bucket += digest

    def __contains__(self, each: str) -> bool:
        bucket, digest = self._place(each)
        at = bucket.find(digest)
        while at > 0 and at % WIDTH:  # across two others
            at = bucket.find(digest, at + 1)
        return at >= 0

    def _place(self, each: str) -> tuple[bytearray, bytes]:
        digest = blake2b(each.encode(), digest_size=2 + WIDTH).digest()
        return self._buckets[int.from_bytes(digest[:2]) % BUCKETS], digest[2:]

    def __len__(self) -> int:
        return sum(len(bucket) for bucket in self._buckets) // WIDTH
