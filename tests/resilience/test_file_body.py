# SPDX-License-Identifier: Apache-2.0
"""A body that is read from disk while it is sent, or a part of it."""

from pathlib import Path

import pytest

from app.resilience import FileBody
from app.resilience.file_body import FILE_PIECE

CONTENT = bytes(range(256)) * (FILE_PIECE // 128)  # two pieces


@pytest.mark.parametrize(
    ("start", "length", "expected"),
    [
        (0, None, CONTENT),
        (0, FILE_PIECE + 7, CONTENT[: FILE_PIECE + 7]),
        (FILE_PIECE - 1, 5, CONTENT[FILE_PIECE - 1 : FILE_PIECE + 4]),
        (len(CONTENT) - 3, 10, CONTENT[-3:]),
        (len(CONTENT), 10, b""),
    ],
    ids=["whole", "more than a piece", "across pieces", "less than asked for", "nothing"],
)
async def test_so_much_of_the_file_is_sent_as_is_told(
    tmp_path: Path, start: int, length: int | None, expected: bytes
) -> None:
    file = tmp_path / "content"
    file.write_bytes(CONTENT)
    body = FileBody(b"<", file, b">", "application/x-thing", start=start, length=length)

    for _ in range(2):
        sent = b"".join([piece async for piece in body.pieces()])
        assert sent == b"<" + expected + b">"
        assert len(sent) == body.size
