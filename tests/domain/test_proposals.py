# SPDX-License-Identifier: Apache-2.0
"""What may be proposed: a closed set, checked whatever a model hands in."""

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import proposals
from app.domain.digests import digest
from app.domain.proposals import LONGEST_REASON, LONGEST_TEXT, RULES, ActionKind, Proposal, ProposalDenied
from app.models import AiTaskKind

OURS, ANOTHER = UUID("0199c0de-0000-7000-8000-00000000abcd"), UUID("0199c0de-0000-7000-8000-00000000dead")
SEVEN_DAYS = timedelta(days=7)
AGREED = {
    "summarise_rollout": (set(), 0, SEVEN_DAYS),
    "triage_failures": ({"retry_failed_devices", "pause"}, 2, timedelta(hours=12)),
    "draft_change_request": (set(), 0, SEVEN_DAYS),
    "propose_rollback": ({"rollback", "pause"}, 1, timedelta(hours=4)),
    "propose_promotion_plan": (set(), 0, SEVEN_DAYS),
}
NEVER = (
    "deploy",
    "promote",
    "approve",
    "set_risk_score",
    "isolate",
    "resume",
    "cancel",
    "ROLLBACK",
    "",
    None,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=12,
)


def an_action(
    kind: object = "rollback", target: object = str(OURS), reason: object = "3 of 10 failed"
) -> Any:
    return {"action": kind, "deployment_id": target, "reason": reason}


def of(*actions: object, text: object = "It failed.") -> Any:
    return {"text": text, "actions": list(actions)}


def denied(kind: AiTaskKind, given: object) -> str:
    """Why."""
    with pytest.raises(ProposalDenied) as caught:
        proposals.check(kind, OURS, given)
    return str(caught.value)


def may_be(kind: AiTaskKind, proposal: Proposal) -> None:
    """Only what is declared, only on the task's own deployment, and all of it can be stored and read."""
    named = [action.kind for action in proposal.actions]
    assert {each.value for each in named} <= AGREED[kind.value][0]
    assert len(named) == len(set(named)) <= AGREED[kind.value][1]
    assert {action.deployment_id for action in proposal.actions} <= {OURS}
    for text in (proposal.text, *(action.reason for action in proposal.actions)):
        assert text.strip() == text != ""
        assert "\x00" not in text.encode().decode()
    kept = json.loads(json.dumps([action.to_json() for action in proposal.actions]))
    assert proposals.stored(kind, OURS, kept) == proposal.actions


def test_the_actions_are_these_three_and_each_kinds_rules_are_those_agreed_on() -> None:
    """Whoever widens this has widened what a model can bring about: domain.md says what that takes."""
    assert {kind.value for kind in ActionKind} == {"rollback", "pause", "retry_failed_devices"}
    told = {
        kind.value: ({action.value for action in rules.actions}, rules.most, rules.lasts)
        for kind, rules in RULES.items()
    }
    assert told == AGREED


@pytest.mark.parametrize("kind", AiTaskKind)
@pytest.mark.parametrize("action", NEVER)
def test_what_is_not_declared_is_denied(kind: AiTaskKind, action: object) -> None:
    assert denied(kind, of(an_action(action)))


@pytest.mark.parametrize(
    "given",
    [
        None,
        [],
        "rollback",
        {},
        {"text": "It failed."},
        of() | {"approved": True},
        of() | {"actions": {"action": "rollback"}},
        of() | {"actions": None},
        of(text=""),
        of(text=" \n"),
        of(text="\x00"),
        of(text="\u202e\u2066"),
        of(text=7),
        of(text="half \ud83d of one"),
        of(text="x" * (LONGEST_TEXT + 1)),
        of("rollback"),
        of(an_action() | {"force": True}),
        of(an_action(target=str(ANOTHER))),
        of(an_action(target=str(OURS).upper())),
        of(an_action(target=f"{{{OURS}}}")),
        of(an_action(target=OURS.hex)),
        of(an_action(target=[str(OURS)])),
        of(an_action(reason="")),
        of(an_action(reason="\x00")),
        of(an_action(reason="\udc00")),
        of(an_action(reason="x" * (LONGEST_REASON + 1))),
        of(an_action(reason=None)),
        of(an_action(["rollback"])),
        of(an_action(), an_action()),
        of(an_action(), an_action("pause")),
    ],
    ids=lambda given: repr(given)[:40],
)
def test_what_is_wrong_in_any_part_is_denied(given: object) -> None:
    assert denied(AiTaskKind.PROPOSE_ROLLBACK, given)


def test_an_action_is_proposed_once() -> None:
    twice = of(an_action("pause"), an_action("pause", reason="once more"))

    assert denied(AiTaskKind.TRIAGE_FAILURES, twice)


def test_two_actions_keep_their_order() -> None:
    both = of(an_action("pause"), an_action("retry_failed_devices"))

    made = proposals.check(AiTaskKind.TRIAGE_FAILURES, OURS, both)

    assert [action.kind.value for action in made.actions] == ["pause", "retry_failed_devices"]


def test_what_would_hide_words_from_whoever_decides_is_taken_out() -> None:
    hidden = "Keep it.\x1b[2K\r\u202eroll back\u202c\x00 all\tof\nit"

    made = proposals.check(AiTaskKind.PROPOSE_ROLLBACK, OURS, of(an_action(reason=hidden), text=hidden))

    assert made.text == made.actions[0].reason == "Keep it.[2Kroll back all\tof\nit"


@settings(max_examples=300)
@given(st.sampled_from(AiTaskKind), JSON)
def test_any_json_at_all_is_denied_or_holds_only_what_may_be(kind: AiTaskKind, given: object) -> None:
    try:
        made = proposals.check(kind, OURS, given)
    except ProposalDenied as error:
        str(error).encode()
    else:
        may_be(kind, made)


ACTIONS = st.builds(
    an_action,
    st.sampled_from([*AGREED["triage_failures"][0], "rollback", *NEVER]) | JSON,
    st.sampled_from([str(OURS), str(OURS), str(OURS), str(ANOTHER), str(OURS).upper()]) | JSON,
    st.just("because") | st.text(st.characters(), max_size=30) | JSON,
) | st.builds(
    lambda action, more: action | more, st.just(an_action()), st.dictionaries(st.text(), JSON, max_size=2)
)
NEARLY = st.builds(
    lambda text, actions, more: {"text": text, "actions": actions} | more,
    st.just("It failed.") | st.text(st.characters()) | JSON,
    st.lists(ACTIONS, max_size=3) | JSON,
    st.just({}) | st.dictionaries(st.sampled_from(["text", "actions", "also"]), JSON, max_size=1),
)


@settings(max_examples=500)
@given(st.sampled_from(AiTaskKind), NEARLY)
def test_what_looks_like_a_proposal_is_denied_or_holds_only_what_may_be(kind: AiTaskKind, given: Any) -> None:
    try:
        made = proposals.check(kind, OURS, given)
    except ProposalDenied as error:
        str(error).encode()
    else:
        may_be(kind, made)


CHANGES: dict[str, Callable[[list[Any]], object]] = {
    "another kind": lambda actions: actions[0].update(action="pause"),
    "a kind that is none": lambda actions: actions[0].update(action="deploy"),
    "no kind at all": lambda actions: actions[0].update(action=[]),
    "another target": lambda actions: actions[0]["target"].update(deployment_id=str(ANOTHER)),
    "another spelling": lambda actions: actions[0]["target"].update(deployment_id=str(OURS).upper()),
    "a target that is none": lambda actions: actions[0]["target"].update(deployment_id=7),
    "more of a target": lambda actions: actions[0]["target"].update(ring="LAB"),
    "no target": lambda actions: actions[0].update(target=None),
    "more arguments": lambda actions: actions[0]["arguments"].update(force=True),
    "a reason that is no text": lambda actions: actions[0]["arguments"].update(reason=7),
    "more parts": lambda actions: actions[0].update(version="2"),
    "twice": lambda actions: actions.append(actions[0]),
    "a text": lambda actions: actions.append("rollback"),
}


@pytest.mark.parametrize("change", [name for name in CHANGES if name != "another kind"])
def test_what_was_stored_otherwise_than_it_may_be_is_denied(change: str) -> None:
    actions = [copy.deepcopy(stored_rollback())]
    CHANGES[change](actions)

    with pytest.raises(ProposalDenied):
        proposals.stored(AiTaskKind.PROPOSE_ROLLBACK, OURS, actions)


@pytest.mark.parametrize("actions", [None, {}, "", 0, {"action": "rollback"}])
def test_what_is_stored_as_no_list_is_denied(actions: object) -> None:
    with pytest.raises(ProposalDenied):
        proposals.stored(AiTaskKind.SUMMARISE_ROLLOUT, OURS, actions)


def test_a_rollback_that_stands_in_a_summary_is_denied() -> None:
    for kind in set(AiTaskKind) - {AiTaskKind.PROPOSE_ROLLBACK}:
        with pytest.raises(ProposalDenied):
            proposals.stored(kind, OURS, [stored_rollback()])


def stored_rollback() -> dict[str, Any]:
    return proposals.check(AiTaskKind.PROPOSE_ROLLBACK, OURS, of(an_action())).actions[0].to_json()


WHOLE: dict[str, Any] = {
    "task_id": OURS,
    "kind": AiTaskKind.PROPOSE_ROLLBACK,
    "deployment_id": OURS,
    "author": "Alice",
    "revision": 1,
    "text": "It failed.",
    "actions": [stored_rollback()],
    "expires_at": datetime(2026, 6, 1, 12, tzinfo=UTC),
}


@pytest.mark.parametrize(
    "change",
    [
        {"task_id": ANOTHER},
        {"kind": AiTaskKind.TRIAGE_FAILURES},
        {"deployment_id": ANOTHER},
        {"author": "alice"},
        {"revision": 2},
        {"text": "It failed"},
        {"actions": []},
        {"expires_at": WHOLE["expires_at"] + timedelta(microseconds=1)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_the_digest_is_over_every_part(change: dict[str, Any]) -> None:
    assert proposals.digest_of(**WHOLE) != proposals.digest_of(**(WHOLE | change))


@pytest.mark.parametrize("change", CHANGES)
def test_the_digest_is_over_every_part_of_an_action(change: str) -> None:
    actions = copy.deepcopy(WHOLE["actions"])
    CHANGES[change](actions)

    assert proposals.digest_of(**WHOLE) != proposals.digest_of(**(WHOLE | {"actions": actions}))


def test_parts_cannot_be_moved_into_one_another() -> None:
    assert digest({"text": "a", "author": "b"}) != digest({"text": "b", "author": "a"})
    assert digest({"text": 'a","author":"b'}) != digest({"text": "a", "author": "b"})
