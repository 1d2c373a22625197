# SPDX-License-Identifier: Apache-2.0
"""Tasks of the assistant for a terminal of 80 columns, from what the API says."""

from collections.abc import Iterator, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from app.client import Json
from app.deployments_view import status, table
from app.terminal import until


def list_tasks(found: Sequence[Json], now: datetime) -> Table:
    """One line each."""
    made = table("id", "status", "expires", "kind")
    for each in found:
        expires = each["proposal"]["expires_at"] if each["proposal"] else None
        made.add_row(each["id"], status(each["status"]), until(expires, now), each["kind"])
    return made


def whole(task: Json, now: datetime) -> RenderableType:
    """What was asked for, what is proposed, what was decided, and what came of it."""
    proposal = task["proposal"]
    parts: list[RenderableType] = [Text("\n".join(_facts(task, now)), style="dim")]
    if proposal:
        parts += [Text(f"\n{proposal['text']}\n"), *map(_action, proposal["actions"])]
        parts += [] if proposal["actions"] else [Text("no actions: a text only", style="dim")]
    if task["error"]:
        parts.append(Text(f"{task['error']['code']}: {task['error']['message']}", style="red"))
    return Group(*parts)


def _facts(task: Json, now: datetime) -> Iterator[str]:
    yield f"task        {task['id']}"
    yield f"kind        {task['kind']}, {task['status']}"
    yield f"deployment  {task['deployment_id']}"
    yield f"by          {task['author']}, {until(task['created_at'], now)}"
    if proposal := task["proposal"]:
        yield f"digest      {proposal['digest']}"
        yield f"expires     {until(proposal['expires_at'], now)}"
    if decision := task["decision"]:
        reason = f": {decision['reason']}" if decision["reason"] else ""
        yield f"decided by  {decision['decided_by']}{reason}"


def _action(action: Json) -> Text:
    came = f" → {action['outcome']}" if action["outcome"] else ""
    detail = f" ({action['detail']})" if action["detail"] else ""
    target = action["target"]["deployment_id"]
    return Text(f"{action['action']} {target}: {action['arguments']['reason']}{came}{detail}", style="bold")
