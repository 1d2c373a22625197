# SPDX-License-Identifier: Apache-2.0
"""Microsoft Intune through Graph v1.0."""

from app.connectors.intune.connector import MANIFEST, Intune, IntuneSettings

__all__ = ["MANIFEST", "Intune", "IntuneSettings"]
