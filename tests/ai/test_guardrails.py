# SPDX-License-Identifier: Apache-2.0
"""What leaves for the model and what comes back: secrets cut out, words left alone, data kept data."""

import json
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.ai import guardrails
from app.ai.contract import Ask, ModelTurn, Reply, StopReason, ToolCall, ToolResult, ToolTurn, UserTurn
from app.ai.guardrails import CUT, LONGEST_ANSWER, LONGEST_RESULT, Redactor

KNOWN = 'pa"ss\\wörd-of-the-database'
REDACTOR = Redactor([KNOWN, "sandbox-secret"])
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
PEM = "-----BEGIN RSA PRIVATE " + "KEY-----\nMIIEow\nIBAAKC\n-----END RSA PRIVATE " + "KEY-----"
JWT = "eyJ" + "hbGciOiJIUzI1NiJ9.eyJ" + "zdWIiOiJtZSJ9.c2lnbmF0dXJl"
SECRETS = {
    "one that is known": (f"it is {KNOWN} here", KNOWN),
    "another that is known": ("Bearer sandbox-secret", "sandbox-secret"),
    "a key of AWS": (f"key {AWS} used", AWS),
    "a private key": (f"take {PEM} please", "MIIEow"),
    "half a private key": (f"take {PEM[:60]}", "MIIEow"),
    "a JWT": (f"with {JWT}", JWT),
    "a token of ours": ("use eucora_" + "Zm9vYmFyYmF6cXV4Zm9vYmFyYmF6cXV4Zm9vYmFyYmE", "Zm9vYmFy"),
    "a named password": ("password: hunter22", "hunter22"),
    "a password that is": ("the password is hunter22!", "hunter22"),
    "a password that is, with a colon": ("my password is: correcthorse", "correcthorse"),
    "an arrow": ("password => correcthorse", "correcthorse"),
    "a key of storage": ("AccountName=me;AccountKey=Zm9vYmFy+/8=;End", "Zm9vYmFy"),
    "a secret of Entra ID": ("it is abc8Q~" + "dEfGhIjKlMnOpQrStUvWxYz012345678.-", "dEfGhIjKl"),
    "a key of Google": ("AIza" + "SyA1234567890abcdefghijklmnopqrstuv", "SyA123456"),
    "a token of GitHub": ("github_pat_" + "11ABCDEFG0abcdefghijkl", "11ABCDEFG0"),
    "a variable": ("EUCORA_DB_PASSWORD=correcthorse", "correcthorse"),
    "a variable of AWS": ("AWS_SECRET_ACCESS_KEY=wJalrXUtnFEMI/K7MDENG", "wJalrXUtnFEMI"),
    "a member": ("clientSecret: abcdefgh", "abcdefgh"),
    "a quoted one": ('password = "my horse battery"', "battery"),
    "in JSON": ('{"dbPassword": "correcthorse"}', "correcthorse"),
    "a bearer": ("Authorization: Bearer abc123def456", "abc123def456"),
    "a long bearer": ("bearer abcdefghijklmnopqrstuvwxyz", "abcdefghijklmnop"),
    "in an address": ("https://me:correcthorse@example.com/x", "correcthorse"),
    "in a query": ("https://example.com/x?sig=abcdef%2Babc&se=1", "abcdef%2Babc"),
}
ORDINARY = (
    "the password is wrong",
    "token expired",
    "the token is not valid any more",
    "Why did the basic installation fail?",
    "bearer authentication is not configured",
    "0x87D1041C: the detection rule found nothing",
    "Invalid token: 0x80070005",
    "3 of 10 devices (30%) at 2026-11-26T17:52:57+00:00",
    "deployment 0199c0de-0000-7000-8000-00000000dead",
    "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "see eucora_operations_running_total and eucora_breaker_transitions_total",
    "https://example.com:8443/a@b?next=1",
    "secret santa: on friday",
    "the password policy: see the handbook",
    "is the token is is wrong?",
    '{"input_tokens": 12345, "output_tokens": 678}',
)


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_a_secret_is_cut_out_of_everything_that_leaves(text: str, secret: str) -> None:
    call, result = ToolCall("1", "t", json.dumps({"text": text})), ToolResult("1", json.dumps({"text": text}))
    turns = UserTurn(text), ModelTurn(text, (call,)), ToolTurn((result,))

    ask = REDACTOR.ask(Ask(system=text, turns=turns))

    assert CUT in ask.system
    for told in (str(ask), json.dumps(str(ask)), json.loads(result_of(ask).content)["text"]):
        assert secret not in told
    assert json.dumps(secret)[1:-1] not in result_of(ask).content


def result_of(ask: Ask) -> ToolResult:
    (turn,) = (turn for turn in ask.turns if isinstance(turn, ToolTurn))
    return turn.results[0]


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_words_are_left_alone(text: str) -> None:
    assert REDACTOR.text(text) == text


def test_a_value_under_a_telling_name_is_cut_out() -> None:
    found = REDACTOR.data({"client_secret": "abc", "tokens": [1], "name": {"password": ["x", 1, None]}})

    assert found == {"client_secret": CUT, "tokens": [1], "name": {"password": [CUT, 1, None]}}


@pytest.mark.parametrize("arguments", ['{"a":  1}', '{"a": "\\ud800"}', "[" * 9000, '{"a": ', "", '"x"'])
def test_what_has_no_secret_is_told_as_it_was(arguments: str) -> None:
    assert REDACTOR.json(arguments) == arguments


def test_a_secret_does_not_hide_behind_a_name_that_is_given_twice() -> None:
    assert "hunter22" not in REDACTOR.json('{"a": "password: hunter22", "a": "x"}')


PIECES = st.lists(
    st.sampled_from(
        [
            *("password", ":", " ", "is", "=", '"', "'", "\\", KNOWN, AWS, "a1", "hunter22", "\n", PEM[:31]),
            *("[redacted]", "{", "}", "Bearer", "token", "0x87D1041C", "://a:", "@", JWT[:12], JWT),
        ]
    ),
    max_size=14,
).map("".join)


@given(PIECES)
@example("password::password")
@example("password=>hunter22")
def test_what_was_cut_out_once_stays_as_it_is(text: str) -> None:
    once = REDACTOR.text(text)

    assert REDACTOR.text(once) == once


@given(PIECES | st.text())
def test_a_tools_answer_stays_one_piece_of_json_whatever_is_in_it(text: str) -> None:
    told = guardrails.envelope("1", "t", REDACTOR.data({"name": text}))

    content = result_of(REDACTOR.ask(Ask("", (ToolTurn((told,)),)))).content

    content.encode()
    seen = guardrails.storable(REDACTOR.text(text))
    assert json.loads(content) == {"tool": "t", "data": {"name": REDACTOR.text(seen)}}


def test_what_is_too_much_is_shortened_and_says_so() -> None:
    events = [{"sequence": number, "reason": "x" * 3000} for number in range(40)]

    result = guardrails.envelope("1", "read_events", {"events": events})

    told = json.loads(result.content)
    assert not result.is_error
    assert len(result.content) <= LONGEST_RESULT
    assert told["shortened"] is True
    assert told["data"]["events"][0]["sequence"] == 0
    assert told["data"]["events"][-1]["sequence"] == 39


def test_the_gates_of_a_whole_rollout_are_told_in_full() -> None:
    names = ("failure_rate", "min_reported", "coverage", "success_rate", "soak", "rollback_possible")
    numbers = {"passed": True, "dry_run": False, "measured": 0.123456, "threshold": 0.98}
    lane: dict[str, Any] = {"criteria": [{"name": name, **numbers} for name in names]}
    lane |= {"ring": "CANARY", "plane": "landscape", "verdict": "hold", "reason": "gate_not_met"}
    lane |= {"detail": None, "signature": "x" * 150, "measured_at": "2026-11-26T18:20:18.215050+00:00"}

    result = guardrails.envelope("1", "read_gates", {"lanes": [lane] * 25})

    assert json.loads(result.content) == {"tool": "read_gates", "data": {"lanes": [lane] * 25}}


def test_what_cannot_be_shortened_is_not_told() -> None:
    result = guardrails.envelope("1", "t", {str(number): "x" for number in range(5000)})

    assert result.is_error
    assert len(result.content) <= LONGEST_RESULT


def reply(text: str = "", *calls: ToolCall, model: str = "m") -> Reply:
    return Reply(text, calls, StopReason.END, None, model)


def test_what_a_model_says_can_be_stored_and_shown() -> None:
    call = ToolCall("id\x00" + "i" * 900, "n\x00" + "n" * 900, '{"a": "' + "x" * 2_000_000)
    said = guardrails.held(reply("a\x00b\ud800" + "x" * 9_000_000, *[call] * 900, model="m\x00" * 900))

    stored = json.dumps(said.text + str(said.calls) + said.model, ensure_ascii=False).encode()
    assert b"\x00" not in stored
    assert said.text.startswith("ab?x")
    assert len(said.text) <= LONGEST_ANSWER
    assert len(said.model) <= 200
    assert len(said.calls) <= 20
    assert all(len(each.name) <= 200 and len(each.id) <= 200 for each in said.calls)
    assert all(len(each.arguments) <= 200_000 for each in said.calls)


def test_a_model_that_gives_two_calls_one_id_or_no_name_can_be_asked_again() -> None:
    calls = [ToolCall("a", "", "{}"), ToolCall("a", "rm -rf /", "{}"), ToolCall("", "read deployment", "{}")]

    said = guardrails.held(reply("", *calls))

    assert len({call.id for call in said.calls}) == 3
    assert all(call.id for call in said.calls)
    assert [call.name for call in said.calls] == ["-", "rm--rf--", "read-deployment"]


@given(PIECES)
def test_what_is_settled_of_a_growing_text_only_grows(text: str) -> None:
    shown = [guardrails.settled(text[:length]) for length in range(len(text) + 1)]

    assert all(text.startswith(each) for each in shown)
    assert all(len(one) <= len(two) for one, two in pairwise(shown))


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
def test_half_a_secret_is_not_shown_while_it_comes(text: str, secret: str) -> None:
    halves = [text[:length] for length in range(len(text)) if text[:length].endswith(secret[:-1])]

    for half in halves:
        shown = REDACTOR.text(guardrails.settled(half))
        assert secret.rsplit(maxsplit=1)[-1][:-1] not in shown


@given(st.lists(st.uuids().map(str), unique=True, min_size=2, max_size=6), st.data())
def test_an_id_is_cited_if_it_was_read(ids: list[str], data: Any) -> None:
    read = data.draw(st.lists(st.sampled_from(ids)))
    named = data.draw(st.lists(st.sampled_from(ids)))

    cited, unknown = guardrails.citations(f"[deployment {'] ['.join(named)}]".upper(), [json.dumps(read)])

    assert cited == [each for each in dict.fromkeys(named) if each in read]
    assert unknown == [each for each in dict.fromkeys(named) if each not in read]


HOSTILE = (
    *(
        "=",
        "eyJ-",
        "eyJaaaaaaaa.",
        "eyJ-eyJaaaaaaaa.",
        "password:",
        "password is ",
        "password ",
        'password:"',
    ),
    *("-----BEGIN ", "-----BEGIN PRIVATE " + "KEY-----", "Bearer ", "a", '"', "a://", "a://b:", " ", "\x00"),
    *("is ", "0123456789abcdef-", "a-b_", "x.y.z-", "\u4e00", "\u202e", "x9Q~"),
)
"""What a text may be made of so that looking at it takes long."""
WAYS: dict[str, Callable[[str], object]] = {
    "redacted": REDACTOR.text,
    "after a secret's name": lambda text: REDACTOR.text("password is" + text),
    "settled": guardrails.settled,
    "settled before its end": lambda text: guardrails.settled(text + "\u4e00"),
    "held": lambda text: guardrails.held(reply(text)),
}


def unfolded(text: str, each: int, redactor: Redactor = REDACTOR) -> list[str]:
    """What is shown of a text that comes in pieces, as far as it has settled; all of it last."""
    seen = guardrails.Unfolding(redactor)
    shown = [seen.text(guardrails.settled(text[:length])) for length in range(each, len(text) + 1, each)]
    return [*shown, seen.text(text)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("unit", HOSTILE, ids=range(len(HOSTILE)))
def test_looking_at_a_text_does_not_take_the_square_of_its_length(unit: str, way: str) -> None:
    """Expressions do not tell their steps, so it is time that is looked at, where the two are far apart.

    Of 32 times the text, 32 times as long where each character is looked at once, and 1024 times where it is
    looked at from each place before it: neither a cache nor a neighbour makes one the other.
    """
    short, long = (unit * (length // len(unit)) for length in (10_000, 320_000))
    least = max(0.0005, min(spent(WAYS[way], short) for _ in range(3)))

    assert any(spent(WAYS[way], long) < 6 * 32 * least for _ in range(3))


def spent(way: Callable[[str], object], text: str) -> float:
    began = time.process_time()
    way(text)
    return time.process_time() - began


class Counting(Redactor):
    """Knows how many characters it was given."""

    looked_at = 0

    def text(self, text: str) -> str:
        self.looked_at += len(text)
        return super().text(text)


@pytest.mark.parametrize("unit", HOSTILE, ids=range(len(HOSTILE)))
def test_a_text_that_comes_in_pieces_is_not_looked_at_from_its_beginning_each_time(unit: str) -> None:
    counting = Counting()
    long = unit * (LONGEST_ANSWER // len(unit))

    unfolded(long, 5_000, counting)

    assert len(long) < counting.looked_at < 16 * len(long)


@given(PIECES, PIECES, st.integers(1000, 5000))
@settings(max_examples=15)
def test_a_text_that_comes_in_pieces_is_shown_as_it_is_in_the_end(one: str, two: str, each: int) -> None:
    """However far it is divided off meanwhile, in text with and without places to divide it at."""
    text = "\n".join([one, "and so on " * 1500, two, "=" * 9000, one, "\u4e00" * 9000, f"{one} {two}"])

    assert unfolded(text, each)[-1] == REDACTOR.text(text)


@pytest.mark.parametrize(("text", "secret"), SECRETS.values(), ids=SECRETS)
@pytest.mark.parametrize("before", [0, 8192 - 4096, 8150, 8192])
def test_no_secret_is_shown_where_a_text_was_divided(text: str, secret: str, before: int) -> None:
    whole = "so it goes " * (before // 11) + text + " and then" * 2000

    for shown in unfolded(whole, 497):
        assert secret not in shown


SEEN = {
    "colours of a terminal": ("a\x1b[31mb", "a[31mb"),
    "its clipboard": ("a\x1b]52;c;eA==\x07b", "a]52;c;eA==b"),
    "one of C1": ("a\x9b31mb\x85", "a31mb"),
    "another order of letters": ("\u202eab\u2066c\u2069", "abc"),
    "nothing": ("a\u200bb\ufeffc\u2060\U000e0041", "abc"),
    "ends of lines": ("a\u2028b\u2029c\r\n\td", "a\nb\nc\n\td"),
    "other scripts": ("\u4e00 \u0434 \xe9 \U0001f600", "\u4e00 \u0434 \xe9 \U0001f600"),
}


@pytest.mark.parametrize(("text", "seen"), SEEN.values(), ids=SEEN)
def test_what_is_not_seen_is_not_stored(text: str, seen: str) -> None:
    assert guardrails.visible(text) == guardrails.storable(text) == seen
    said = guardrails.held(reply(text, ToolCall("1", "t", json.dumps({"a": text}, ensure_ascii=False))))
    told = json.loads(guardrails.envelope("1", "t", {"a": [text]}).content)

    assert said.text == seen
    assert told["data"] == {"a": [seen]}
    assert "\x9b" not in said.calls[0].arguments
    json.loads(said.calls[0].arguments)


@pytest.mark.parametrize(
    "text", ["\u4e00" * 100, "\u3042" * 100, "\u0434" * 200, "\U0001f600" * 100, "abc" * 120]
)
def test_tokens_of_other_scripts_are_not_far_more_than_estimated(text: str) -> None:
    assert guardrails.tokens(text) >= 100
