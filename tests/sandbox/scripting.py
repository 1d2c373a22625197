# SPDX-License-Identifier: Apache-2.0
"""A client of the scripted model without a wire: it calls what the model asks for, and has fixed results."""

import json
from collections.abc import Mapping
from typing import Any

from sandbox.scripted_conversation import Answer, Asked, Call, Conversation, Result, Said, Turn, Wish
from sandbox.scripted_model import answer

ID = "0b9fb1a5-31f3-4f0b-8d6e-0c2c6a2b9d11"
OTHER = "ffffffff-31f3-4f0b-8d6e-0c2c6a2b9d11"
READS = ("read_deployment", "read_blockers", "read_gates", "read_failures")
CHAT = frozenset({*READS, "find_deployments", "read_events", "list_breakers", "list_planes"})
TASKS = CHAT | {"submit_proposal"}
LANE = {"ring": "CANARY", "plane": "intune", "status": "MEASURING", "held_for": "gate_not_passed"}
COUNTS = {"targeted": 200, "success_count": 182, "failure_count": 18, "unreachable_count": 0}
FOUND: Mapping[str, Any] = {
    "find_deployments": {"deployments": [{"id": ID, "app_name": "Firefox"}, {"id": OTHER}]},
    "read_deployment": {
        "id": ID,
        "app_name": "Firefox",
        "app_version": "128.0",
        "status": "ROLLING_OUT",
        "paused": True,
        "pause_reason": "a holiday",
        "risk_score": 42,
        "requires_cab_approval": True,
        "target_ring": "GLOBAL",
        "planes": ["intune"],
        "lanes": [{**LANE, **COUNTS, "success_rate": 0.91, "error": None}],
    },
    "read_blockers": {
        "blockers": [
            {
                "code": "gate_not_passed",
                "subject": "CANARY/intune",
                "unblocks_when": "enough devices succeed.",
                "who_can_act": "operator",
            }
        ]
    },
    "read_gates": {
        "lanes": [
            {
                "ring": "CANARY",
                "plane": "intune",
                "verdict": "hold",
                "criteria": [
                    {"name": "success_rate", "threshold": 0.98, "measured": 0.912, "passed": False},
                    {"name": "soak", "threshold": 3600, "measured": 60, "passed": False},
                    {"name": "coverage", "threshold": 0.9, "measured": 1, "passed": True},
                ],
            }
        ]
    },
    "read_failures": {
        "failures": [
            {"cause": "reboot pending", "devices": 5, "of": 18, "lanes": ["CANARY/intune"]},
            {"cause": "disk full", "devices": 13, "of": 18, "lanes": ["CANARY/intune"]},
        ]
    },
    "list_breakers": {
        "breakers": [{"service": "jamf", "state": "open", "retry_at": "noon", "last_error": "503"}]
    },
    "list_planes": {
        "planes": [
            {"plane": "intune", "configured": True, "missing": []},
            {"plane": "jamf", "configured": False, "missing": ["url"]},
        ]
    },
    "submit_proposal": {"id": "p1"},
}


def conversation(*turns: Turn, tools: frozenset[str] = CHAT, system: str = "") -> Conversation:
    return Conversation(system, turns, tools)


def played(
    question: str, *, tools: frozenset[str] = CHAT, found: Mapping[str, Any] = FOUND, most: int = 8
) -> list[Answer]:
    """All answers until the model has done, with the tools' results between them."""
    turns: list[Turn] = [Asked(question)]
    answers: list[Answer] = []
    while len(answers) < most:
        answers.append(answer(conversation(*turns, tools=tools)))
        if not answers[-1].wishes:
            break
        calls = tuple(Call(f"{len(answers)}-{place}", each) for place, each in enumerate(answers[-1].wishes))
        turns.append(Said(answers[-1].text, calls))
        turns += [Result(call.id, told(call.wish, found)) for call in calls]
    return answers


def told(call: Wish, found: Mapping[str, Any]) -> str:
    answered = found.get(call.tool)
    if isinstance(answered, str):
        return json.dumps({"tool": call.tool, "error": answered})
    return json.dumps({"tool": call.tool, "data": answered or {}})


def asked_for(answers: list[Answer]) -> list[list[str]]:
    return [[each.tool for each in one.wishes] for one in answers]


def task(kind: str, more: str = "") -> str:
    return f"Please do this.\ntask: {kind}\ndeployment: {ID}\n{more}"


def submitted(answers: list[Answer]) -> dict[str, Any]:
    (proposal,) = answers[1].wishes
    assert proposal.tool == "submit_proposal"
    document: dict[str, Any] = json.loads(proposal.arguments)
    return document
