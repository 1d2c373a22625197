# SPDX-License-Identifier: Apache-2.0
"""What the scripted model says and asks for, conversation by conversation."""

import json
from collections.abc import Mapping
from typing import Any

import pytest

from sandbox.scripted_conversation import Asked, Call, Result, Said, Stop, wish
from sandbox.scripted_model import answer, subject_of
from tests.sandbox.scripting import (
    CHAT,
    FOUND,
    ID,
    OTHER,
    READS,
    TASKS,
    asked_for,
    conversation,
    played,
    submitted,
    task,
)


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("why is firefox stuck?", "firefox"),
        ("What holds Contoso VPN back", "Contoso VPN"),
        ("status of “7-Zip”, please", "7-Zip"),
        ("What's blocking Notepad++?", "Notepad++"),
        ("Hello!", ""),
        ("What can you do?", ""),
    ],
)
def test_the_subject_is_what_is_left_of_a_question(question: str, subject: str) -> None:
    assert subject_of(question) == subject


def test_a_question_about_an_application_is_answered_from_what_was_read() -> None:
    found, read, last = played("why is firefox stuck?")

    assert found.wishes == (wish("find_deployments", text="firefox"),)
    assert read.wishes == tuple(wish(tool, deployment_id=ID) for tool in READS)
    assert (found.stop, read.stop, last.stop) == (Stop.TOOLS, Stop.TOOLS, Stop.END)
    assert last.text == (
        f"Firefox 128.0 [deployment {ID}] is ROLLING_OUT. It is paused: a holiday. It is held by "
        "gate_not_passed (CANARY/intune): it is over when enough devices succeed; who can act: operator. "
        "The gate of CANARY/intune (verdict hold): success_rate 91.2 % against a threshold of 98 %, "
        "soak 60 s against a threshold of 3600 s. The commonest failure is disk full (13 of 18 failed "
        "devices, on CANARY/intune)."
    )


def test_a_question_with_an_id_is_not_searched_for() -> None:
    assert asked_for(played(f"How is {ID} doing?")) == [list(READS), []]


@pytest.mark.parametrize(
    ("question", "tool", "text"),
    [
        (
            "Which planes are there?",
            "list_planes",
            "intune is configured. jamf is not configured: url is missing.",
        ),
        (
            "Is a breaker open?",
            "list_breakers",
            "The breaker of jamf is open, tried again at noon, last error: 503.",
        ),
    ],
)
def test_planes_and_breakers_are_listed(question: str, tool: str, text: str) -> None:
    listed, last = played(question)

    assert (listed.wishes, last.text) == ((wish(tool),), text)


def test_nothing_found_is_said_and_nothing_is_made_up() -> None:
    answers = played("why is chrome stuck?", found={"find_deployments": {"deployments": []}})

    assert answers[-1].text == "I found no deployment of chrome."
    assert len(answers) == 2


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({**FOUND, "find_deployments": "not allowed"}, "I could not look for firefox: not allowed"),
        ({**FOUND, "read_deployment": "gone"}, f"I could not read [deployment {ID}]: gone"),
    ],
)
def test_a_tools_error_is_told(found: Mapping[str, Any], text: str) -> None:
    assert played("why is firefox stuck?", found=found)[-1].text == text


@pytest.mark.parametrize("question", ["Hi there!", "thanks", "what can you do?"])
def test_whoever_asks_nothing_hears_in_one_sentence_what_can_be_asked(question: str) -> None:
    (only,) = played(question)

    assert only.text.startswith("I can tell why a deployment is stuck")
    assert only.text.count(".") == 1


@pytest.mark.parametrize(
    "question", ["why is firefox stuck?", f"how is {ID}?", "which planes?", "which breakers?"]
)
@pytest.mark.parametrize("tool", [None, *sorted(CHAT)])
def test_no_tool_is_called_that_is_not_offered(question: str, tool: str | None) -> None:
    offered = frozenset({tool} if tool else ())

    answers = played(question, tools=offered)

    assert {each.tool for one in answers for each in one.wishes} <= offered
    assert answers[-1].text


def test_calls_before_the_last_question_do_not_count() -> None:
    before = Said("", (Call("1", wish("find_deployments", text="firefox")),))
    turns = (
        Asked("why is firefox stuck?"),
        before,
        Result("1", "{}"),
        Said("It is."),
        Asked("And firefox now?"),
    )

    assert answer(conversation(*turns)).wishes == (wish("find_deployments", text="firefox"),)


def test_a_summary_quotes_what_was_asked_and_keeps_every_id() -> None:
    turns = (
        Asked("x" * 300),
        Said(f"It is [deployment {ID}]."),
        Result("1", OTHER.upper()),
        Asked("[[refuse]]"),
    )

    summary = answer(conversation(*turns, system="Summarise the conversation, briefly."))

    assert summary.text.splitlines() == [
        f'Asked: "{"x" * 200}"',
        'Asked: "[[refuse]]"',
        f"Ids: {ID}, {OTHER}",
    ]


@pytest.mark.parametrize(
    ("kind", "actions", "words"),
    [
        ("summarise_rollout", [], "CANARY/intune: MEASURING; 182 of 200 devices succeeded (91 %), 18 failed"),
        ("triage_failures", ["retry_failed_devices"], "Cause 1: disk full (13 of 18 failed devices"),
        ("draft_change_request", [], "Risk score: 42 (the board must approve it)"),
        ("propose_rollback", ["rollback"], f"Roll back Firefox 128.0 [deployment {ID}]."),
        ("propose_promotion_plan", [], "CANARY/intune: MEASURING; still missing: success_rate 91.2 %"),
    ],
)
def test_a_task_is_read_then_proposed_then_over(kind: str, actions: list[str], words: str) -> None:
    answers = played(task(kind), tools=TASKS)
    proposal = submitted(answers)

    assert asked_for(answers) == [list(READS), ["submit_proposal"], []]
    assert words in proposal["text"]
    assert [each["action"] for each in proposal["actions"]] == actions
    assert all(each["deployment_id"] == ID and each["reason"] for each in proposal["actions"])
    assert answers[-1].text == "The proposal is submitted."


def test_where_nothing_failed_nothing_is_tried_again() -> None:
    answers = played(task("triage_failures"), tools=TASKS, found={**FOUND, "read_failures": {"failures": []}})

    assert submitted(answers)["actions"] == []
    assert "No device" in submitted(answers)["text"]


def test_a_revision_is_acknowledged() -> None:
    answers = played(task("triage_failures", "revision: shorter, please"), tools=TASKS)

    assert submitted(answers)["text"].startswith("Revised as asked: shorter, please\n")


def test_a_refused_proposal_comes_once_more_without_the_action_that_the_error_names() -> None:
    found = {**FOUND, "submit_proposal": "the action rollback is not allowed"}

    answers = played(task("propose_rollback"), tools=TASKS, found=found)

    assert asked_for(answers) == [list(READS), ["submit_proposal"], ["submit_proposal"], []]
    again = json.loads(answers[2].wishes[0].arguments)
    assert again == {**submitted(answers), "actions": []}
    assert answers[-1].text == "The proposal was refused: the action rollback is not allowed"


def test_an_error_that_names_no_action_leaves_them() -> None:
    answers = played(task("propose_rollback"), tools=TASKS, found={**FOUND, "submit_proposal": "later"})

    assert answers[2].wishes == answers[1].wishes


@pytest.mark.parametrize("tools", [frozenset({"submit_proposal"}), TASKS - {"read_gates"}])
def test_a_task_copes_with_fewer_tools(tools: frozenset[str]) -> None:
    answers = played(task("propose_promotion_plan"), tools=tools)

    assert answers[-2].wishes[0].tool == "submit_proposal"
    assert {each.tool for one in answers for each in one.wishes} <= tools
