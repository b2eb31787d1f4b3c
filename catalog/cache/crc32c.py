"""crc32c (Castagnoli, RFC 3720), by google-crc32c where it is installed, else by table in plain Python."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

google_crc32c: Any
try:
    import google_crc32c
except ImportError:  # a training image may have numpy alone; slow, but right
    google_crc32c = None

POLYNOMIAL = 0x82F63B78  # reflected


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = (byte >> 1) ^ (POLYNOMIAL if byte & 1 else 0)
        table.append(byte)
    return table


TABLE = _table()


def crc32c_plain(data: NDArray[np.uint8]) -> int:
    crc = 0xFFFFFFFF
    for byte in data.tobytes():
        crc = TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def crc32c(data: NDArray[np.uint8]) -> int:
    """crc32c of a contiguous array of bytes."""
    if google_crc32c is None:
        return crc32c_plain(data)
    return int(google_crc32c.value(data))
