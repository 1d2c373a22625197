# SPDX-License-Identifier: Apache-2.0
"""What a sandbox remembers: documents by table and key, in memory and in a journal of JSON lines."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

Document = dict[str, Any]

COMPACT_AFTER_LINES = 100_000


class Journal:
    """All tables of one sandbox process. Without a path nothing outlives the process.

    A line is handed to the operating system before ``Table.put`` returns, so that a killed process loses
    nothing it has answered for; a machine that loses power may.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._tables: dict[str, dict[str, Document]] = {}
        self._late: dict[tuple[str, str], Document] = {}
        self._lines = 0
        self._descriptor: int | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._replay(path)
            self._compact(path)

    def table(self, name: str) -> "Table":
        """The table of that name, made by its first use."""
        return Table(self, name, self._tables.setdefault(name, {}))

    def write(self, table: str, key: str, document: Document | None) -> None:
        """Append one line, and with it all that was put off."""
        self._late.pop((table, key), None)
        self._append([*self._drain(), (table, key, document)])

    def put_off(self, table: str, key: str, document: Document) -> None:
        """Have a document written with the next line or flush."""
        self._late[table, key] = document

    def flush(self) -> None:
        """Write what was put off."""
        if self._late:
            self._append(self._drain())

    def close(self) -> None:
        """Flush and let go of the file."""
        self.flush()
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _drain(self) -> list[tuple[str, str, Document | None]]:
        late: list[tuple[str, str, Document | None]] = [(*place, doc) for place, doc in self._late.items()]
        self._late.clear()
        return late

    def _append(self, lines: list[tuple[str, str, Document | None]]) -> None:
        if self._path is None or self._descriptor is None:
            return
        write_all(self._descriptor, b"".join(as_line(*line) for line in lines))
        self._lines += len(lines)
        if self._lines > COMPACT_AFTER_LINES + 2 * sum(map(len, self._tables.values())):
            self._compact(self._path)

    def _replay(self, path: Path) -> None:
        if not path.exists():
            return
        with path.open("rb") as lines:
            for line in lines:
                if not line.endswith(b"\n"):
                    return  # torn by a kill in the middle of a write: its request was never answered
                table, key, document = json.loads(line)
                rows = self._tables.setdefault(table, {})
                if document is None:
                    rows.pop(key, None)
                else:
                    rows[key] = document

    def _compact(self, path: Path) -> None:
        """Replace the file, in one step, by one that holds only what is true now."""
        fresh = path.with_name(path.name + ".new")
        with fresh.open("wb") as file:
            for table, rows in self._tables.items():
                file.writelines(as_line(table, key, document) for key, document in rows.items())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
        if self._descriptor is not None:
            os.close(self._descriptor)
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND)
        self._lines = sum(map(len, self._tables.values()))


class Table(Mapping[str, Document]):
    """Documents of one kind in the order they came. A document is replaced, never changed in place."""

    def __init__(self, journal: Journal, name: str, rows: dict[str, Document]) -> None:
        self._journal = journal
        self._name = name
        self._rows = rows

    def __getitem__(self, key: str) -> Document:
        return self._rows[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def put(self, key: str, document: Document) -> Document:
        """Store a document, safe from a kill when this returns."""
        self._rows[key] = document
        self._journal.write(self._name, key, document)
        return document

    def put_late(self, key: str, document: Document) -> None:
        """Store a document that may be lost if the process is killed within the flush interval."""
        self._rows[key] = document
        self._journal.put_off(self._name, key, document)

    def drop(self, key: str) -> None:
        """Forget a document; it may be absent."""
        if self._rows.pop(key, None) is not None:
            self._journal.write(self._name, key, None)


def as_line(table: str, key: str, document: Document | None) -> bytes:
    """One line of the file; a document of None is a deletion."""
    return json.dumps([table, key, document], separators=(",", ":")).encode() + b"\n"


def write_all(descriptor: int, content: bytes) -> None:
    """Write everything, however the operating system cuts it up."""
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
