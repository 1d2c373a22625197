# SPDX-License-Identifier: Apache-2.0
"""Exchanges are held against the vendors' documents where those are; where they are not, this says so."""

import pytest

from tests.connectors.contract_check import ABSENT, CONTRACTS_OF, Contract, Examples

EVERY = [contract for several in CONTRACTS_OF.values() for contract in several]


@pytest.mark.parametrize("contract", EVERY, ids=[contract.name for contract in EVERY])
def test_the_contract_was_there_to_hold_the_exchanges_against(contract: Contract | Examples) -> None:
    if not contract.is_at_hand:
        pytest.skip(ABSENT)

    assert len(contract.document["paths"] if isinstance(contract, Contract) else contract.document) >= 5
