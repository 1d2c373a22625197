# SPDX-License-Identifier: Apache-2.0
"""Canonical Landscape."""

from app.connectors.landscape.connector import MANIFEST, Landscape, LandscapeSettings

__all__ = ["MANIFEST", "Landscape", "LandscapeSettings"]
