# SPDX-License-Identifier: Apache-2.0
"""What the settings of every plane have in common."""

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

ADDRESS = r"^https?://[^\s?#]+$"


class PlaneSettings(BaseModel):
    """Read from ``EUCORA_PLANES__<PLANE>__<NAME>``: an unknown name is an error, and no value is told."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


def not_enough(setting: str, alternatives: str) -> PydanticCustomError:
    """The error of credentials of which no way is complete: the setting to name, and what would do."""
    return PydanticCustomError(
        "not_enough", "set {alternatives}", {"setting": setting, "alternatives": alternatives}
    )
