# SPDX-License-Identifier: Apache-2.0
"""A language model that follows a script: a pure function of the conversation, the same answer each time.

It answers questions about deployments and drafts proposals with the product's tools, which it knows by name
and calls only where they are offered. It obeys directives wherever it meets them (``scripted_directives``).
"""

import json
import re
from collections.abc import Callable

from sandbox import scripted_words as words
from sandbox.scripted_conversation import (
    Answer,
    Asked,
    Conversation,
    Json,
    Wish,
    ask_for,
    say,
    wish,
)
from sandbox.scripted_directives import obeyed, proposal_in, without
from sandbox.scripted_proposals import UUID, Task, proposal, task_in

MODEL = "sandbox-scripted"
SUBMIT = "submit_proposal"
SUMMARISE = "Summarise the conversation"
QUOTED = 200
SUBMITTED_AT_MOST = 2
WHAT_I_DO = (
    "I can tell why a deployment is stuck, how it stands, and how the planes and breakers are: "
    "ask me about an application."
)
LISTS: tuple[tuple[str, str, Callable[[Json], str]], ...] = (
    ("plane", "list_planes", words.planes),
    ("breaker", "list_breakers", words.breakers),
)
COMMON = """
a about afternoon again all am an and any anything app application apps are as at back be been being
blocked blocking blocks but by can cannot check could current currently deployed deployment deployments
did do does doing done evening explain fail failed failing fails failures find finished for from get give
go going good goodbye happened happening happens has have having held hello help here hey hi hold holding
holds how i in install installation is isn isn't issue it its just know last late latest let look many me
morning moving much my need needs newest no not now of ok okay on or our package paused please preventing
prevents problem progress read really release reports ring rings rollout rollouts s see show slow so some
state status still stop stopped stops stuck t tell thank thanks that the their them there these they this
those to today up update us version very wait waiting waits want was we week were what what's when where
which who whose why will with would wrong yes yesterday yet you your
"""
STOP_WORDS = frozenset(COMMON.split())
PUNCTUATION = "?!.,;:\"'`()[]{}<>*_“”„’‘«»"  # noqa: RUF001  (people type them)


def answer(conversation: Conversation) -> Answer:
    """What the model says next."""
    if SUMMARISE in conversation.system:
        return say(summary_of(conversation))
    task = task_in(conversation.question) if SUBMIT in conversation.tools else None
    told = obeyed(conversation)
    if told is not None:
        return told
    return worked_on(conversation, task) if task is not None else chatted(conversation)


def summary_of(conversation: Conversation) -> str:
    """What people said, and every id that occurs anywhere; directives are no orders here, only words."""
    asked = [turn.text for turn in conversation.turns if isinstance(turn, Asked)]
    quoted = [f'Asked: "{text[:QUOTED]}"' for text in asked]
    turns = "\n".join(turn.text for turn in conversation.turns)
    ids = dict.fromkeys(found.lower() for found in UUID.findall(turns))
    return "\n".join([*quoted, *([f"Ids: {', '.join(ids)}"] if ids else [])])


def chatted(conversation: Conversation) -> Answer:
    """The next turn of a conversation."""
    injected = proposal_in(conversation.texts())
    if injected is not None and not conversation.is_done(Wish(SUBMIT, injected)):
        return ask_for(Wish(SUBMIT, injected))
    question = without(conversation.question)
    if found := UUID.search(question):
        return told_about(conversation, found[0].lower())
    for noun, tool, tell in LISTS:
        if re.search(rf"\b{noun}s?\b", question, re.IGNORECASE):
            return listed(conversation, tool, tell)
    subject = subject_of(question)
    return say(WHAT_I_DO) if subject == "" else searched(conversation, subject)


def subject_of(question: str) -> str:
    """What a question is about: what is left of it without the words that every question has."""
    plain = question.replace("’", "'")  # noqa: RUF001  (people type it)
    bare = [word.strip(PUNCTUATION).removesuffix("'s") for word in plain.split()]
    return " ".join(word for word in bare if word and word.lower() not in STOP_WORDS)


def listed(conversation: Conversation, tool: str, tell: Callable[[Json], str]) -> Answer:
    """A list that one tool gives, told in sentences."""
    missing = conversation.missing([wish(tool)])
    if missing:
        return ask_for(*missing)
    outcome = conversation.outcome(wish(tool))
    if outcome is None:
        return say("I cannot look that up here.")
    return say(tell(outcome.found) if outcome.error is None else f"I could not look it up: {outcome.error}")


def searched(conversation: Conversation, subject: str) -> Answer:
    """The newest deployment of an application."""
    search = wish("find_deployments", text=subject)
    missing = conversation.missing([search])
    if missing:
        return ask_for(*missing)
    outcome = conversation.outcome(search)
    if outcome is None:
        return say("I cannot look deployments up here.")
    if outcome.error is not None:
        return say(f"I could not look for {subject}: {outcome.error}")
    hits = outcome.found.get("deployments") or []
    return (
        told_about(conversation, str(hits[0]["id"])) if hits else say(f"I found no deployment of {subject}.")
    )


def told_about(conversation: Conversation, deployment_id: str) -> Answer:
    """One deployment: all that can be read about it in one turn, then sentences."""
    missing = conversation.missing(words.reads(deployment_id))
    if missing:
        return ask_for(*missing)
    return say(words.explained(words.sheet(conversation, deployment_id)))


def worked_on(conversation: Conversation, task: Task) -> Answer:
    """The next turn of a task: read, propose, propose less if that was refused, end."""
    submitted = conversation.calls(SUBMIT)
    if submitted:
        return after_proposal(conversation)
    missing = conversation.missing(words.reads(task.deployment_id))
    if missing:
        return ask_for(*missing)
    injected = proposal_in(conversation.texts())
    if injected is not None:
        return ask_for(Wish(SUBMIT, injected))
    return ask_for(wish(SUBMIT, **proposal(task, words.sheet(conversation, task.deployment_id))))


def after_proposal(conversation: Conversation) -> Answer:
    """An end, or the same proposal without the actions that the error names."""
    submitted = conversation.calls(SUBMIT)
    outcome = conversation.outcome_of(submitted[-1])
    if outcome is None or outcome.error is None:
        return say("The proposal is submitted.")
    if len(submitted) >= SUBMITTED_AT_MOST:
        return say(f"The proposal was refused: {outcome.error}")
    return ask_for(lessened(submitted[-1].wish, outcome.error))


def lessened(submitted: Wish, error: str) -> Wish:
    """A proposal without the actions that an error names."""
    try:
        document = json.loads(submitted.arguments)
    except ValueError:
        return submitted
    if not isinstance(document, dict) or not isinstance(document.get("actions"), list):
        return submitted
    kept = [action for action in document["actions"] if not is_named(action, error)]
    return wish(SUBMIT, **{**document, "actions": kept})


def is_named(action: object, error: str) -> bool:
    """Whether an error speaks of an action."""
    name = action.get("action") if isinstance(action, dict) else None
    return isinstance(name, str) and name in error
