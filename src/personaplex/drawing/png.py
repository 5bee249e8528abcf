"""A picture as a PNG that can stand in a page.

Written here because nothing we depend on writes a palette of transparencies (PyAV's PNG encoder leaves it out), and
because the format's whole of it is four chunks around `zlib.compress`. Ink is black on nothing: the page's own style
turns it white where the page is dark.
"""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

SHADES = 32
"""Steps between nothing and black: more are not seen, and are bytes."""
WIDEST = 8192
"""Columns of one picture: far below what any browser refuses to draw."""


def ink(values: np.ndarray) -> bytes:
    """A PNG of `values` [rows, columns], 0 for nothing to 1 for black, the first row on top.

    Raises ValueError for no rows or columns.
    """
    if values.ndim != 2 or not values.size:
        raise ValueError(f"expected values [rows, columns], at least one of each; found {values.shape}")
    shades = np.rint(np.clip(np.nan_to_num(values), 0, 1) * (SHADES - 1)).astype(np.uint8)
    height, width = shades.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), shades], axis=1)  # each begins with its filter: none
    transparency = bytes(round(255 * i / (SHADES - 1)) for i in range(SHADES))
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),  # 8 bits, an index into the palette
            _chunk(b"PLTE", bytes(3 * SHADES)),
            _chunk(b"tRNS", transparency),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def address(png: bytes) -> str:
    """The picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
