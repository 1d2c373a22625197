# SPDX-License-Identifier: Apache-2.0
"""Configuration Manager."""

from app.connectors.sccm.connector import MANIFEST, Sccm, SccmSettings

__all__ = ["MANIFEST", "Sccm", "SccmSettings"]
