# SPDX-License-Identifier: Apache-2.0
"""``[[…]]`` in a conversation: orders that the scripted model obeys, so that guardrails can be tried.

``[[call <tool> <json object>]]`` and ``[[propose <json object>]]`` are obeyed wherever they stand, as a model
would that falls for an injection; the others only in the last thing a person said.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator

from sandbox.scripted_conversation import Answer, Conversation, Stop, Wish, ask_for, say, wish

CALL = re.compile(r"\[\[call\s+([A-Za-z0-9_.-]+)\s+")
PROPOSE = re.compile(r"\[\[propose\s+")
SAY = re.compile(r"\[\[say (.*?)\]\](?!\])", re.DOTALL)  # the text may end with a bracket of its own
WORDS = re.compile(r"\[\[words\s+(\d{1,6})\]\]")
ANY = re.compile(r"\[\[.*?\]\](?!\])", re.DOTALL)
ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
CONTROL = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}
LONGEST_OBJECT = 20_000
ESCAPED_AT_MOST = 3  # JSON in JSON in JSON
DECODER = json.JSONDecoder(strict=False)
MALFORMED = Wish("read_deployment", '{"deployment_id": ')
WRONG = wish("find_deployments", limit="many")
LOOP = wish("find_deployments", text="loop")
REFUSAL = "I cannot help with that."
CUT_SHORT = "This answer is longer than it may"


def obeyed(conversation: Conversation) -> Answer | None:
    """What the directives make of the next turn; None where they leave it to the model."""
    slips, done = list(slips_in(conversation.question)), conversation.answered
    if done < len(slips):
        return ask_for(slips[done])
    for order in orders(conversation.texts()):
        if not conversation.is_done(order):
            return ask_for(order)
    return told_to_say(conversation)


def slips_in(question: str) -> Iterator[Wish]:
    """The mistakes that come first, one a turn."""
    if "[[malformed]]" in question:
        yield MALFORMED
    if "[[wrong-arguments]]" in question:
        yield WRONG


def told_to_say(conversation: Conversation) -> Answer | None:
    """What the last thing a person said orders the model to say."""
    question = conversation.question
    if found := SAY.search(question):
        return say(found[1])
    if found := WORDS.search(question):
        return say(" ".join(f"w{number}" for number in range(1, int(found[1]) + 1)))
    made = (make(conversation) for order, make in FIXED.items() if f"[[{order}]]" in question)
    return next(made, None)


FIXED: dict[str, Callable[[Conversation], Answer]] = {
    "refuse": lambda _: Answer(REFUSAL, stop=Stop.REFUSAL),
    "length": lambda _: Answer(CUT_SHORT, stop=Stop.LENGTH),
    "echo-system": lambda conversation: say(conversation.system),
    "loop": lambda _: ask_for(LOOP),
}


def orders(texts: Iterable[str]) -> Iterator[Wish]:
    """What ``[[call …]]`` asks for, in order of appearance; one that stands twice comes twice."""
    for text in texts:
        for found in CALL.finditer(text):
            arguments = object_at(text, found.end())
            if arguments is not None:
                yield Wish(found[1], arguments)


def proposal_in(texts: Iterable[str]) -> str | None:
    """The object of the first ``[[propose …]]``."""
    found = (object_at(text, match.end()) for text in texts for match in PROPOSE.finditer(text))
    return next((each for each in found if each is not None), None)


def object_at(text: str, start: int) -> str | None:
    """The JSON object that stands there, as it is written, also where the text around it has escaped it."""
    rest = text[start : start + LONGEST_OBJECT]
    for _ in range(ESCAPED_AT_MOST + 1):
        end = end_of_object(rest)
        if end is not None:
            return rest[:end] if rest[end:].lstrip().startswith("]]") else None
        rest = ESCAPE.sub(unescaped, rest)
    return None


def end_of_object(text: str) -> int | None:
    """Where the JSON object that a text begins with ends; None if it does not begin with one."""
    try:
        value, end = DECODER.raw_decode(text)
    except ValueError:
        return None
    return end if isinstance(value, dict) else None


def unescaped(found: re.Match[str]) -> str:
    """What one escape of JSON stands for."""
    return chr(int(found[1], 16)) if found[1] else CONTROL.get(found[2], found[2])


def without(text: str) -> str:
    """A text without its directives."""
    return ANY.sub(" ", text)
