# SPDX-License-Identifier: Apache-2.0
"""What the model is told about its part. A changed text is a new file with the next version.

They help the model to do well; nothing depends on them for safety: what it may not do, it cannot.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Prompt:
    """``name`` with its version, as calls are recorded with, and the text."""

    name: str
    text: str


@cache
def load(name: str) -> Prompt:
    """The file ``<name>.md`` beside this one; ``name`` ends with its version.

    Raises:
        FileNotFoundError: there is none.
    """
    return Prompt(name, (Path(__file__).parent / f"{name}.md").read_text(encoding="utf-8").strip())
