# SPDX-License-Identifier: Apache-2.0
"""Examples of the document: what is said to the assistant, and what it proposes."""

from typing import Any

CONVERSATION_ID = "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b20"
TASK_ID = "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b21"
DEPLOYMENT_ID = "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b01"
OPERATION_ID = "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b22"
CORRELATION_ID = "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b23"
AT, LATER = "2027-01-31T08:00:00Z", "2027-01-31T08:00:07Z"
DIGEST = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"

MESSAGE_CREATE: dict[str, Any] = {"content": "why is firefox stuck?"}
USER_MESSAGE: dict[str, Any] = {
    "id": "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b24",
    "sequence": 1,
    "role": "user",
    "status": "COMPLETE",
    "author": "night shift",
    "content": "why is firefox stuck?",
    "tool_calls": [],
    "citations": [],
    "unverified": [],
    "stop_reason": None,
    "model": None,
    "error": None,
    "operation_id": None,
    "created_at": AT,
    "finished_at": AT,
}
ANSWER: dict[str, Any] = {
    **USER_MESSAGE,
    "id": "0199c0de-5d7c-7e11-a7a5-0f6d3f1c2b25",
    "sequence": 2,
    "role": "assistant",
    "content": f"CANARY on intune did not pass its gate [deployment {DEPLOYMENT_ID}].",
    "tool_calls": [{"tool": "find_deployments", "arguments": '{"text": "firefox"}', "ok": True}],
    "citations": [{"id": DEPLOYMENT_ID}],
    "stop_reason": "end",
    "model": "example-model",
    "operation_id": OPERATION_ID,
    "finished_at": LATER,
}
CONVERSATION: dict[str, Any] = {
    "id": CONVERSATION_ID,
    "title": "why is firefox stuck?",
    "created_by": "night shift",
    "correlation_id": CORRELATION_ID,
    "operation_id": OPERATION_ID,
    "version": 3,
    "created_at": AT,
    "updated_at": LATER,
    "answering": False,
    "summary": None,
    "summarised_through": 0,
    "messages": [USER_MESSAGE, ANSWER],
}
TASK_CREATE: dict[str, Any] = {
    "kind": "propose_rollback",
    "deployment_id": DEPLOYMENT_ID,
    "instructions": "the help desk reports crashes",
}
TASK: dict[str, Any] = {
    **TASK_CREATE,
    "id": TASK_ID,
    "correlation_id": CORRELATION_ID,
    "author": "night shift",
    "status": "AWAITING_APPROVAL",
    "status_since": LATER,
    "proposal": {
        "revision": 1,
        "text": f"18 of 60 devices failed in CANARY; take it back [deployment {DEPLOYMENT_ID}].",
        "actions": [
            {
                "action": "rollback",
                "target": {"deployment_id": DEPLOYMENT_ID},
                "arguments": {"reason": "CANARY failed on 30 % of its devices"},
                "outcome": None,
                "detail": None,
                "operation_id": None,
                "at": None,
            }
        ],
        "digest": DIGEST,
        "model": "example-model",
        "proposed_at": LATER,
        "expires_at": "2027-01-31T12:00:07Z",
    },
    "decision": None,
    "operation_id": OPERATION_ID,
    "error": None,
    "version": 3,
    "created_at": AT,
    "finished_at": None,
}
DECISION: dict[str, Any] = {"reason": "agreed with the application's owner", "digest": DIGEST}

ASSISTANT: dict[str, dict[str, Any]] = {
    "MessageCreate": MESSAGE_CREATE,
    "ConversationRead": CONVERSATION,
    "TaskCreate": TASK_CREATE,
    "TaskRead": TASK,
    "DecisionGiven": DECISION,
}
