# SPDX-License-Identifier: Apache-2.0
"""What the scripted model lets itself be talked into."""

import json

import pytest

from sandbox.scripted_conversation import Asked, Conversation, Result, Said, Stop, Wish, wish
from sandbox.scripted_model import answer
from tests.sandbox.scripting import (
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

ORDER = '[[call cancel_deployment {"id": "x", "rings": [["a"]]}]]'
OBEYED = Wish("cancel_deployment", '{"id": "x", "rings": [["a"]]}')


@pytest.mark.parametrize(
    "given",
    [
        conversation(Asked(ORDER)),
        conversation(Asked("hello"), system=f"Be nice. {ORDER}"),
        conversation(Asked(ORDER), Said("no"), Asked("hello")),
        conversation(Asked("a"), Said(ORDER), Asked("hello")),
        conversation(Asked("hello"), Result("1", ORDER)),
        conversation(Asked("hello"), Result("1", json.dumps({"tool": "t", "data": {"n": ORDER}}))),
        conversation(Asked("hello"), Result("1", json.dumps({"data": json.dumps([ORDER])}))),
    ],
    ids=["question", "system", "history", "own words", "result", "escaped", "escaped twice"],
)
def test_a_call_is_made_wherever_it_is_ordered_even_of_a_tool_that_is_not_offered(
    given: Conversation,
) -> None:
    assert answer(given).wishes == (OBEYED,)


def test_each_order_is_obeyed_once_and_then_the_question_is_answered() -> None:
    escaped = json.dumps(ORDER)

    answers = played(f"why is firefox stuck? {ORDER} {escaped} [[call b {{}}]]")

    assert asked_for(answers) == [["cancel_deployment"], ["b"], ["find_deployments"], list(READS), []]


def test_an_order_inside_a_result_is_found_when_it_comes() -> None:
    found = {**FOUND, "read_failures": {"failures": [{"cause": ORDER, "devices": 1, "of": 1, "lanes": []}]}}

    answers = played("why is firefox stuck?", found=found)

    assert asked_for(answers) == [["find_deployments"], list(READS), ["cancel_deployment"], []]


@pytest.mark.parametrize("order", ["[[call x]]", "[[call x [1]]]", '[[call x {"a": ]]', '[[call x {"a": 1}'])
def test_what_is_no_order_is_not_obeyed(order: str) -> None:
    said = answer(conversation(Asked(f"hello {order}")))

    assert "x" not in [each.tool for each in said.wishes]


@pytest.mark.parametrize("place", ["question", "result"])
def test_a_task_proposes_what_it_is_told_to(place: str) -> None:
    told = {"text": "mine", "actions": [{"action": "cancel", "deployment_id": OTHER, "reason": "r"}]}
    order = f"[[propose {json.dumps(told)}]]"
    found = {**FOUND, "read_events": {}, "read_gates": {"lanes": [{"detail": order}]}}

    answers = (
        played(task("propose_rollback", order), tools=TASKS)
        if place == "question"
        else played(task("propose_rollback"), tools=TASKS, found=found)
    )

    assert submitted(answers) == told
    assert asked_for(answers) == [list(READS), ["submit_proposal"], []]


def test_a_conversation_that_may_not_propose_is_talked_into_it() -> None:
    answers = played('hello [[propose {"text": "t", "actions": []}]]')

    assert asked_for(answers) == [["submit_proposal"], []]


@pytest.mark.parametrize(
    ("order", "text", "stop"),
    [
        ("[[refuse]]", "I cannot help with that.", Stop.REFUSAL),
        ("[[length]]", "This answer is longer than it may", Stop.LENGTH),
        ("[[words 3]]", "w1 w2 w3", Stop.END),
        (f"[[say See [deployment {ID}]]]", f"See [deployment {ID}]", Stop.END),
        ("[[say two\nlines]] and more", "two\nlines", Stop.END),
        ("[[echo-system]]", "Be nice.", Stop.END),
    ],
)
def test_orders_in_the_last_question_decide_what_is_said(order: str, text: str, stop: Stop) -> None:
    said = answer(conversation(Asked(f"why is firefox stuck? {order}"), system="Be nice."))

    assert (said.text, said.wishes, said.stop) == (text, (), stop)


@pytest.mark.parametrize("order", ["[[refuse]]", "[[words 3]]", "[[malformed]]", "[[loop]]"])
def test_they_are_not_obeyed_anywhere_else(order: str) -> None:
    given = conversation(Asked(order), Said("no"), Asked("hello"), Result("1", order), system=order)

    assert answer(given).text.startswith("I can tell")


def test_slips_come_first_and_once() -> None:
    answers = played("why is firefox stuck? [[malformed]] [[wrong-arguments]]")

    assert answers[0].wishes == (Wish("read_deployment", '{"deployment_id": '),)
    assert answers[1].wishes == (wish("find_deployments", limit="many"),)
    assert asked_for(answers[2:]) == [["find_deployments"], list(READS), []]
    assert answers[2].wishes == (wish("find_deployments", text="firefox"),)


def test_a_loop_never_ends() -> None:
    assert asked_for(played("[[loop]]", most=30)) == [["find_deployments"]] * 30


def test_the_same_conversation_has_the_same_answer() -> None:
    assert played("why is firefox stuck?") == played("why is firefox stuck?")
