# SPDX-License-Identifier: Apache-2.0
"""Faults, pace and witness of the language models, as a client meets them on the wire."""

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandbox.journal import Journal
from sandbox.models import REMEMBERED, Desk, Pace
from tests.sandbox.provider import AnthropicClient, Client, OpenAiClient, documents
from tests.sandbox.tenant import Clock, Tenant

NORMAL = {
    "per_word": 0.0,
    "silent_after": None,
    "pings_after": None,
    "cut_after": None,
    "error_after": None,
    "once": False,
}


@pytest.fixture(params=[OpenAiClient, AnthropicClient], ids=["openai", "anthropic"])
def client(request: pytest.FixtureRequest, tenant: Tenant) -> Iterator[Client]:
    with request.param(tenant.url) as client:
        yield client


def test_a_fault_has_the_vendors_error_body_and_the_faults_headers(client: Client) -> None:
    client.fault(status=429, headers={"Retry-After": "3"}, path=client.path.removeprefix("/v1"))

    answer = client.ask("hello")

    assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")
    assert answer.json()["error"]["type"] in {"requests", "rate_limit_error"}
    assert client.http.get("/v1/models").status_code == 200


def test_an_overloaded_anthropic_says_so(tenant: Tenant) -> None:
    with AnthropicClient(tenant.url) as client:
        client.fault(status=529)

        error = client.ask("hello").json()["error"]

    assert error == {"type": "overloaded_error", "message": "Overloaded"}


def test_a_fault_may_bring_its_own_body(client: Client) -> None:
    client.fault(status=200, body="<h1>Sign in</h1>", headers={"Content-Type": "text/html"})

    assert client.ask("hello").text == "<h1>Sign in</h1>"


@pytest.mark.parametrize("fault", [{"reset": True}, {"half_body": True}])
@pytest.mark.parametrize("stream", [False, True])
def test_a_connection_can_break(client: Client, fault: dict[str, Any], *, stream: bool) -> None:
    client.fault(**fault)

    with pytest.raises(httpx.TransportError):
        client.ask("[[words 20]]", stream=stream)


def test_control_documents_that_make_no_sense_are_refused(client: Client) -> None:
    for name, document in (
        ("pace", {"per_word": -1}),
        ("pace", {"silent_after": "soon"}),
        ("pace", {"invented": 1}),
        ("faults", {}),
        ("requests", {"items": []}),
    ):
        assert client.http.put(f"/_sandbox/{name}", json=document).status_code == 422


def test_pace_is_told_as_it_was_set(client: Client) -> None:
    assert client.control("pace") == NORMAL
    assert client.control("pace", {"cut_after": 3, "once": True}) == {**NORMAL, "cut_after": 3, "once": True}
    assert client.control("pace", {}) == NORMAL


def test_words_come_one_by_one(client: Client) -> None:
    client.control("pace", {"per_word": 0.05})

    started = time.perf_counter()
    with client.listening("[[words 4]]") as lines:
        assert list(client.words(lines)) == ["w1", " w2", " w3", " w4"]
    assert time.perf_counter() - started >= 0.2


def test_after_some_words_nothing_comes_any_more(client: Client) -> None:
    client.control("pace", {"silent_after": 2})

    with client.listening("[[words 9]]", patience=0.3) as lines:
        words = client.words(lines)
        assert list(islice(words, 2)) == ["w1", " w2"]
        with pytest.raises(httpx.ReadTimeout):
            next(words)


def test_after_some_words_only_keep_alives_come(client: Client) -> None:
    client.control("pace", {"pings_after": 2})

    with client.listening("[[words 9]]") as lines:
        assert list(islice(client.words(lines), 2)) == ["w1", " w2"]
        later = [line for line in islice(lines, 12) if line]

    assert set(later) <= {": keep-alive", "event: ping", 'data: {"type": "ping"}'}
    assert len(later) > 3


def test_after_some_words_the_connection_closes(client: Client) -> None:
    client.control("pace", {"cut_after": 2})

    with client.listening("[[words 9]]") as lines:
        words = client.words(lines)
        assert list(islice(words, 2)) == ["w1", " w2"]
        with pytest.raises(httpx.RemoteProtocolError):
            next(words)


def test_after_some_words_an_error_comes_in_the_stream(client: Client) -> None:
    client.control("pace", {"error_after": 2})

    with client.listening("[[words 9]]") as lines:
        events = list(documents(lines))

    assert [client.word(event) for event in events if client.word(event)] == ["w1", " w2"]
    assert events[-1]["error"]["type"] in {"server_error", "overloaded_error"}


def test_a_whole_answer_goes_wrong_too(client: Client) -> None:
    client.control("pace", {"error_after": 2})
    assert client.ask("[[words 9]]").status_code == client.overloaded
    client.control("pace", {"cut_after": 2})
    with pytest.raises(httpx.RemoteProtocolError):
        client.ask("[[words 9]]")
    client.control("pace", {"silent_after": 2})
    with pytest.raises(httpx.ReadTimeout):
        client.http.post(client.path, json=client.body("[[words 9]]"), timeout=0.3)


def test_an_answer_with_fewer_words_is_not_touched(client: Client) -> None:
    client.control("pace", {"cut_after": 3})

    assert client.ask("[[words 2]]").status_code == 200
    with client.listening("[[words 2]]") as lines:
        assert list(client.words(lines)) == ["w1", " w2"]


def test_at_no_words_at_all_calls_go_wrong_as_well(client: Client) -> None:
    client.control("pace", {"cut_after": 0})

    with pytest.raises(httpx.RemoteProtocolError):
        client.ask("why is firefox stuck?", tools=["find_deployments"], stream=True)


def test_once_is_the_next_answer_only(client: Client) -> None:
    client.control("pace", {"error_after": 0, "once": True})
    client.http.get("/v1/models")
    client.http.post(client.path, json={})

    assert [client.ask("hello").status_code for _ in range(2)] == [client.overloaded, 200]
    assert client.control("pace") == NORMAL


def test_the_witness_tells_whole_requests_without_the_key(client: Client) -> None:
    client.ask("hello")
    client.http.get("/v1/models", headers={"x-api-key": "wrong", "authorization": "no", "x-more": "1"})
    client.http.post(client.path, content=b"{")

    asked, listed, broken = client.control("requests")["items"]

    assert (asked["method"], asked["path"], asked["status"]) == ("POST", client.path, 200)
    assert asked["body"] == client.body("hello")
    assert (listed["method"], listed["body"], listed["status"]) == ("GET", None, 401)
    assert listed["headers"]["x-more"] == "1"
    assert not {"authorization", "api-key", "x-api-key"} & listed["headers"].keys()
    assert (broken["body"], broken["status"]) == ("{", 400)


def test_the_witness_knows_of_answers_that_never_came(client: Client) -> None:
    client.fault(reset=True)
    with pytest.raises(httpx.TransportError):
        client.ask("hello")

    assert [each["status"] for each in client.control("requests")["items"]] == [None]


def test_the_witness_forgets_when_told_to_and_by_itself(client: Client) -> None:
    client.ask("hello")
    assert client.control("requests", {}) == {"items": []}
    desk = Desk("x", Journal(None), Clock())
    desk.requests.extend({"number": number} for number in range(REMEMBERED + 1))
    assert (len(desk.requests), desk.requests[0]) == (500, {"number": 1})


def test_faults_and_pace_outlive_the_process(tmp_path: Path) -> None:
    first = Journal(tmp_path / "state.jsonl")
    Desk("openai", first, Clock()).go_at(Pace(per_word=1))
    first.close()

    assert Desk("openai", Journal(tmp_path / "state.jsonl"), Clock()).pace.per_word == 1


def test_the_two_are_apart(tenant: Tenant) -> None:
    with OpenAiClient(tenant.url) as one, AnthropicClient(tenant.url) as other:
        one.fault(status=500)
        one.control("pace", {"per_word": 3})

        assert other.ask("hello").status_code == 200
        assert (other.control("pace"), len(other.control("requests")["items"])) == (NORMAL, 1)
