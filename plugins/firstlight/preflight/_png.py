"""Small pictures as PNG, so that a page with images needs no library and no second file."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Sequence


def png_of(rows: Sequence[Sequence[Sequence[int]]]) -> bytes:
    """Return a PNG file of rows of pixels: one number from 0 to 255 for gray, three for red, green and blue.

    >>> png_of([[[0], [255]]])[:8] == bytes([137, 80, 78, 71, 13, 10, 26, 10])
    True
    """
    channels = len(rows[0][0])
    header = struct.pack(">IIBBBBB", len(rows[0]), len(rows), 8, 0 if channels == 1 else 2, 0, 0, 0)
    # each row begins with the number of its filter, here none
    lines = b"".join(b"\0" + bytes(value for pixel in row for value in pixel) for row in rows)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines, 9)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def address_of(picture: bytes) -> str:
    """Return a PNG as an address that holds it whole."""
    return "data:image/png;base64," + base64.b64encode(picture).decode("ascii")
