# SPDX-License-Identifier: Apache-2.0
"""Jamf Pro."""

from app.connectors.jamf.connector import MANIFEST, Jamf, JamfSettings

__all__ = ["MANIFEST", "Jamf", "JamfSettings"]
