# SPDX-License-Identifier: Apache-2.0
"""Every table, imported so that the metadata is whole."""

from app.models.account import ApiToken, IdempotencyKey, Role
from app.models.ai_task import ActionOutcome, AiAction, AiCall, AiTask, AiTaskKind, AiTaskStatus
from app.models.approval import Approval, ApprovalStatus
from app.models.base import Base, new_id
from app.models.breaker import BreakerEvent
from app.models.conversation import Conversation, Message, MessageRole, MessageStatus
from app.models.deployment import (
    Connectivity,
    Deployment,
    DeploymentPlane,
    DeploymentStatus,
    DeviceResult,
    DeviceState,
    LaneStatus,
    Promotion,
    Ring,
    RingDeployment,
    RingTarget,
    WayBack,
)
from app.models.drift import Drift, DriftStatus, DriftType, Severity
from app.models.event import Event, EventCheckpoint, EventHead
from app.models.freeze import Freeze, MaintenanceWindow
from app.models.gate_policy import StoredPolicy
from app.models.operation import Effect, EffectState, Operation, OperationStatus
from app.models.schedule import Schedule, ScheduleTick

__all__ = [
    "ActionOutcome",
    "AiAction",
    "AiCall",
    "AiTask",
    "AiTaskKind",
    "AiTaskStatus",
    "ApiToken",
    "Approval",
    "ApprovalStatus",
    "Base",
    "BreakerEvent",
    "Connectivity",
    "Conversation",
    "Deployment",
    "DeploymentPlane",
    "DeploymentStatus",
    "DeviceResult",
    "DeviceState",
    "Drift",
    "DriftStatus",
    "DriftType",
    "Effect",
    "EffectState",
    "Event",
    "EventCheckpoint",
    "EventHead",
    "Freeze",
    "IdempotencyKey",
    "LaneStatus",
    "MaintenanceWindow",
    "Message",
    "MessageRole",
    "MessageStatus",
    "Operation",
    "OperationStatus",
    "Promotion",
    "Ring",
    "RingDeployment",
    "RingTarget",
    "Role",
    "Schedule",
    "ScheduleTick",
    "Severity",
    "StoredPolicy",
    "WayBack",
    "new_id",
]
