# SPDX-License-Identifier: Apache-2.0
"""Ansible AWX and Automation Platform."""

from app.connectors.ansible.connector import MANIFEST, Ansible, AnsibleSettings

__all__ = ["MANIFEST", "Ansible", "AnsibleSettings"]
