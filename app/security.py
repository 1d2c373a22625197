# SPDX-License-Identifier: Apache-2.0
"""Tokens and permissions. Pure: knows neither sessions nor requests."""

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType

from app.models import Role

TOKEN_PREFIX = "eucora_"  # noqa: S105 - what every token starts with, so that secret scanners recognise one


class Permission(StrEnum):
    """What a route asks of its caller; each route declares one. ``PUBLIC`` asks for no token at all."""

    PUBLIC = "public"
    READ = "read"
    DEPLOYMENT_CREATE = "deployment:create"
    DEPLOYMENT_PROMOTE = "deployment:promote"
    DEPLOYMENT_COMMAND = "deployment:command"
    GATE_OVERRIDE = "gate:override"
    OPERATION_COMMAND = "operation:command"
    TARGET_WRITE = "target:write"
    FREEZE_WRITE = "freeze:write"
    APPROVAL_DECIDE = "approval:decide"
    PLANE_CHECK = "plane:check"
    BREAKER_COMMAND = "breaker:command"
    AI_ASK = "ai:ask"
    AI_DECIDE = "ai:decide"


_VIEWER = frozenset({Permission.PUBLIC, Permission.READ})
_PACKAGER = _VIEWER | {Permission.DEPLOYMENT_CREATE, Permission.AI_ASK}
_PUBLISHER = _PACKAGER | {
    Permission.DEPLOYMENT_PROMOTE,
    Permission.DEPLOYMENT_COMMAND,
    Permission.OPERATION_COMMAND,
    Permission.TARGET_WRITE,
    Permission.FREEZE_WRITE,
    Permission.PLANE_CHECK,
}
_APPROVER = _VIEWER | {
    Permission.DEPLOYMENT_PROMOTE,
    Permission.GATE_OVERRIDE,
    Permission.APPROVAL_DECIDE,
    Permission.AI_DECIDE,
}

PERMISSIONS: Mapping[Role, frozenset[Permission]] = MappingProxyType(
    {
        Role.VIEWER: _VIEWER,
        Role.PACKAGER: _PACKAGER,
        Role.PUBLISHER: _PUBLISHER,
        Role.APPROVER: _APPROVER,
        Role.ADMIN: frozenset(Permission),
    }
)
"""An approver promotes only with an override, a publisher only without; the handler asks for the second."""


def allows(role: Role, permission: Permission) -> bool:
    """Whether a caller of this role may do that."""
    return permission in PERMISSIONS[role]


def new_token() -> str:
    """A bearer token with 256 bits of randomness. It is shown once; only its hash is stored."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> bytes:
    """What is stored of a token and looked up, 32 bytes. No salt: the token is random already."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def same_token(token_hash: bytes, known_hash: bytes | None) -> bool:
    """Compare two hashes in constant time; nothing equals a token that is not set."""
    return known_hash is not None and hmac.compare_digest(token_hash, known_hash)
