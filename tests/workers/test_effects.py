# SPDX-License-Identifier: Apache-2.0
"""What the ledger keeps of an error."""

from app.resilience.errors import PermanentError
from workers.effects import as_json


def test_no_secret_reaches_the_ledger() -> None:
    error = PermanentError("https://host/x.exe?sig=SECRETSIG: Bearer abc.def", service="intune", status=404)

    kept = as_json(error)

    assert (kept["class"], kept["code"], kept["service"]) == ("permanent", "permanent", "intune")
    assert "SECRETSIG" not in kept["message"]
    assert "abc.def" not in kept["message"]
