# SPDX-License-Identifier: Apache-2.0
"""What a model writes as arguments is checked before anything is done with it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.ai.contract import ToolCall
from app.ai.tools import INQUIRIES, LONGEST_ARGUMENTS, BadArguments, FindDeployments, arguments_of

ID = "0199c0de-0000-7000-8000-00000000dead"


def call(name: str, arguments: str) -> ToolCall:
    return ToolCall("1", name, arguments)


def test_every_tool_is_told_with_a_closed_schema() -> None:
    for declared in INQUIRIES.values():
        tool = declared.tool()
        assert tool.parameters["type"] == "object"
        assert tool.parameters["additionalProperties"] is False


def test_nothing_that_changes_anything_is_declared() -> None:
    assert {name.partition("_")[0] for name in INQUIRIES} == {"find", "read", "list"}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("read_deployment", '{"deployment_id": '),
        ("read_deployment", "{}"),
        ("read_deployment", '{"deployment_id": "x"}'),
        ("read_deployment", f'["{ID}"]'),
        ("read_deployment", f'{{"deployment_id": "{ID}", "also": 1}}'),
        ("read_deployment", "null"),
        ("read_deployment", "NaN"),
        ("read_deployment", "[" * 100_000),
        ("read_deployment", " " * LONGEST_ARGUMENTS + "{}"),
        ("read_deployment", f'{{"deployment_id": "{ID}", "\\ud800": 1}}'),
        ("read_deployment", f'{{"deployment_id": "{ID}", "{"x" * 50_000}": 1}}'),
        ("find_deployments", '{"limit": "many"}'),
        ("find_deployments", '{"limit": 21}'),
        ("find_deployments", '{"limit": 1e999}'),
        ("find_deployments", '{"limit": ' + "9" * 5000 + "}"),
        ("find_deployments", '{"text": "a\\u0000b"}'),
        ("find_deployments", '{"text": "a\\ud800b"}'),
        ("find_deployments", '{"status": "FAILED\'; DROP TABLE deployments"}'),
        ("find_deployments", '{"status": "FAILED\\n"}'),
        ("list_planes", '{"all": true}'),
    ],
)
def test_what_is_no_call_of_a_tool_is_refused_in_words(name: str, arguments: str) -> None:
    with pytest.raises(BadArguments) as refused:
        INQUIRIES[name].parse(call(name, arguments))

    assert str(refused.value)
    assert len(str(refused.value)) < 2000


def test_no_arguments_are_an_empty_object() -> None:
    assert INQUIRIES["find_deployments"].parse(call("find_deployments", "")) == FindDeployments()


@given(st.text() | st.recursive(st.none() | st.text(), st.lists).map(str), st.sampled_from(sorted(INQUIRIES)))
def test_whatever_a_model_writes_is_a_call_or_refused(arguments: str, name: str) -> None:
    try:
        INQUIRIES[name].parse(call(name, arguments))
    except BadArguments as refused:
        str(refused).encode()


@given(st.text())
def test_arguments_are_json_or_refused(arguments: str) -> None:
    try:
        arguments_of(call("t", arguments))
    except BadArguments:
        return
