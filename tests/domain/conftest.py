# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests of operations."""

import pytest

from tests.domain.operation_bench import Told


@pytest.fixture
def told() -> Told:
    """What was told of operations that ended."""
    return Told()
