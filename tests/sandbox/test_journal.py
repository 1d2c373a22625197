# SPDX-License-Identifier: Apache-2.0
"""The file that a sandbox's state outlives its process in."""

import json
from pathlib import Path

from sandbox import journal
from sandbox.journal import Journal


def test_documents_outlive_the_process_without_a_goodbye(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "state.jsonl"
    first = Journal(path)
    table = first.table("t")
    table.put("a", {"n": 1})
    table.put("b", {"n": 2})
    table.put("a", {"n": 3})
    table.drop("b")
    table.drop("never")

    second = Journal(path).table("t")

    assert dict(second) == {"a": {"n": 3}}
    assert len(path.read_text().splitlines()) == 1  # compacted


def test_what_was_put_off_is_written_with_the_next_line_or_by_a_flush(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    first = Journal(path)
    first.table("counts").put_late("a", {"n": 1})
    first.table("counts").put_late("a", {"n": 2})
    assert path.read_text() == ""

    first.table("t").put("x", {})
    assert [json.loads(line)[0] for line in path.read_text().splitlines()] == ["counts", "t"]
    first.table("counts").put_late("b", {"n": 1})
    first.close()

    assert dict(Journal(path).table("counts")) == {"a": {"n": 2}, "b": {"n": 1}}


def test_a_line_torn_by_a_kill_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    first = Journal(path)
    first.table("t").put("a", {"n": 1})
    first.close()
    with path.open("ab") as file:
        file.write(b'["t","b",{"n"')

    second = Journal(path)
    second.table("t").put("c", {"n": 3})

    assert dict(Journal(path).table("t")) == {"a": {"n": 1}, "c": {"n": 3}}


def test_the_file_does_not_grow_for_ever(tmp_path: Path) -> None:
    path = tmp_path / "state.jsonl"
    kept = Journal(path)
    table = kept.table("t")
    for number in range(journal.COMPACT_AFTER_LINES + 3):
        table.put("a", {"n": number})

    assert len(path.read_text().splitlines()) < 10
    assert Journal(path).table("t")["a"] == {"n": journal.COMPACT_AFTER_LINES + 2}
