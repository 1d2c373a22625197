# SPDX-License-Identifier: Apache-2.0
"""Between the port's values and what AWX sends and takes; nothing here calls anybody."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from app.connectors.contract import Action, App, DeviceReport, InstallState
from app.connectors.packages import PlaybookPackage
from app.connectors.rest import Json, package_of

SERVICE = "ansible"
MARKER = "eucora_effect"
PATTERN_SIGNS = re.compile(r"[\s:,&!*?\[\]~]")
"""What has a meaning in a limit (Ansible's host patterns), so that a group's name may not have it."""


def playbook(app: App) -> PlaybookPackage:
    """The package, if it is one that AWX runs.

    Raises:
        PermanentError: another kind.
    """
    return package_of(app, PlaybookPackage, refusal="AWX does not run", service=SERVICE)


def variables(app: App, key: str) -> Json:
    """What the playbook is told: the package's variables, and what is installed under whose marker."""
    ours = {MARKER: key, "eucora_app_name": app.name, "eucora_app_version": app.version}
    return {**playbook(app).extra_vars, **ours}


def marker_of(job: Json) -> str | None:
    """Our marker in a job's variables, which AWX keeps as text."""
    told = job.get("extra_vars")
    try:
        known = json.loads(told) if isinstance(told, str) else told
    except ValueError:
        return None  # somebody else's, in YAML
    return known.get(MARKER) if isinstance(known, dict) else None


def complaints(asked: Json, package: PlaybookPackage, scope: Mapping[str, Any] | None) -> Iterator[str]:
    """Why a template must not be launched, by what its launch asks for; ``scope`` None: whatever the ring."""
    if not asked.get("ask_limit_on_launch"):
        yield "it does not prompt for the limit, so it would run on its whole inventory"
    if not asked.get("ask_variables_on_launch"):
        yield "it does not prompt for variables, so the version would be lost"
    if scope is not None and not asked.get("ask_inventory_on_launch"):
        own = ((asked.get("defaults") or {}).get("inventory") or {}).get("id")
        if own != scope["inventory"]:
            yield f"it runs on inventory {own} and does not prompt for another"
    missing = sorted(set(asked.get("variables_needed_to_start") or ()) - set(package.extra_vars))
    if missing:
        yield f"it needs the variables {', '.join(missing)}"
    if asked.get("passwords_needed_to_start"):
        yield "it asks for passwords"
    if asked.get("credential_needed_to_start"):
        yield "it has no credential"


def report(row: Json, why: str | None, action: Action) -> DeviceReport:
    """One host of a job's summary."""
    state = _state(row, action)
    failed = state in {InstallState.FAILED, InstallState.REMOVE_FAILED, InstallState.UNREACHABLE}
    return DeviceReport(
        device_id=str(row.get("host") or row["host_name"]),
        name=str(row["host_name"]),
        state=state,
        detail=why if failed else None,
    )


def _state(row: Json, action: Action) -> InstallState:
    if row.get("dark"):
        return InstallState.UNREACHABLE
    if row.get("failed"):
        return InstallState.FAILED if action is Action.ASSIGN else InstallState.REMOVE_FAILED
    return InstallState.INSTALLED if action is Action.ASSIGN else InstallState.NOT_INSTALLED


def reason(event: Json) -> str:
    """The task that went wrong, and its message."""
    result = (event.get("event_data") or {}).get("res") or {}
    said = result.get("msg") if isinstance(result, dict) else None
    return f"{event.get('task') or event.get('event')}: {said or event.get('stdout') or 'no message'}"[:1000]


def describe(answer: httpx.Response) -> str:
    """AWX's ``detail``, or what it says of each field."""
    try:
        body = answer.json()
        return str(body["detail"]) if "detail" in body else json.dumps(body)
    except (ValueError, TypeError):
        return answer.text
