# SPDX-License-Identifier: Apache-2.0
"""Clients of the sandbox's language models, one per wire format, over a real socket."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import httpx

import sandbox
from sandbox.scripted_model import MODEL
from tests.connectors.contract_check import Contract, Exchange
from tests.wire import PLAIN

Json = dict[str, Any]
OPENAI = Contract("openai", below="/openai/v1")
ANTHROPIC = {
    version: Contract(name, below="/anthropic")
    for version, name in (("2023-06-01", "anthropic"), ("2026-10-21", "anthropic-2026-10-21"))
}


class Client(ABC):
    """A client of one provider; which one is its subclass's matter."""

    name: str
    path: str
    overloaded: int
    key: dict[str, str]

    def __init__(self, url: str) -> None:
        self.http = httpx.Client(base_url=f"{url}/{self.name}", timeout=10, headers=self.key, verify=PLAIN)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    @abstractmethod
    def body(self, question: str, *, tools: Sequence[str] = (), stream: bool = False) -> Json:
        """A question as a request's body."""

    @abstractmethod
    def said(self, answer: Json) -> str:
        """The text of a whole answer."""

    @abstractmethod
    def word(self, event: Json) -> str:
        """The text that an event of a stream brings."""

    def ask(self, question: str, **more: Any) -> httpx.Response:
        return self.http.post(self.path, json=self.body(question, **more))

    @contextmanager
    def listening(self, question: str, *, patience: float = 10) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer as they come."""
        body = self.body(question, stream=True)
        with self.http.stream("POST", self.path, json=body, timeout=patience) as answer:
            assert answer.status_code == 200
            yield answer.iter_lines()

    def words(self, lines: Iterator[str]) -> Iterator[str]:
        """The words in them."""
        for event in documents(lines):
            if word := self.word(event):
                yield word

    def control(self, name: str, document: Json | None = None) -> Any:
        """A control document, after it was replaced if another is given."""
        path = f"/_sandbox/{name}"
        answer = self.http.get(path) if document is None else self.http.put(path, json=document)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fault(self, **fault: object) -> None:
        self.control("faults", {"items": [fault]})


class OpenAiClient(Client):
    """A client in OpenAI's words."""

    name, path, overloaded = "openai", "/v1/chat/completions", 503
    key = {"authorization": f"Bearer {sandbox.CLIENT_SECRET}"}  # noqa: RUF012

    def body(self, question: str, *, tools: Sequence[str] = (), stream: bool = False) -> Json:
        offered = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in tools]
        told = {"model": MODEL, "messages": [{"role": "user", "content": question}], "stream": stream}
        return {**told, **({"tools": offered} if offered else {})}

    def said(self, answer: Json) -> str:
        return str(answer["choices"][0]["message"]["content"])

    def word(self, event: Json) -> str:
        return "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))


class AnthropicClient(Client):
    """A client in Anthropic's words."""

    name, path, overloaded = "anthropic", "/v1/messages", 529
    key = {"x-api-key": sandbox.CLIENT_SECRET, "anthropic-version": "2023-06-01"}  # noqa: RUF012

    def body(self, question: str, *, tools: Sequence[str] = (), stream: bool = False) -> Json:
        offered = [{"name": name, "input_schema": {"type": "object"}} for name in tools]
        told = {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": question}]}
        return {**told, "stream": stream, "tools": offered}

    def said(self, answer: Json) -> str:
        return "".join(block["text"] for block in answer["content"] if block["type"] == "text")

    def word(self, event: Json) -> str:
        return str(event.get("delta", {}).get("text", ""))


def documents(lines: Iterator[str]) -> Iterator[Json]:
    """The documents of a stream's events, up to its end."""
    for line in lines:
        content = line.removeprefix("data: ")
        if line.startswith("data: ") and content != "[DONE]":
            yield json.loads(content)


def exchange_of(answer: httpx.Response) -> Exchange:
    """A request and its answer, as contracts want them."""
    request = answer.request
    asked, told = request.content, answer.content
    query = request.url.query.decode()
    return Exchange(request.method, request.url.path, query, asked, answer.status_code, told)
