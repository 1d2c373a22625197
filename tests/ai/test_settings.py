# SPDX-License-Identifier: Apache-2.0
"""What an operator sets of the language model is checked, named when it is wrong, and never told."""

import pytest
from pydantic import SecretStr

from app.ai.settings import BadAiSettings, parse, sandbox_settings
from app.settings import Settings, secrets_of

KEY = "sk-a-key-that-nobody-may-see"
WHOLE = {"provider": "openai", "model": "gpt", "api_key": KEY}


def test_nothing_set_is_no_model() -> None:
    assert parse({}) is None


def test_the_vendors_address_is_the_default() -> None:
    openai, anthropic = parse(WHOLE), parse({**WHOLE, "provider": "anthropic"})

    assert openai is not None
    assert anthropic is not None
    assert openai.url == "https://api.openai.com/v1"
    assert anthropic.url == "https://api.anthropic.com"


def test_a_server_of_ones_own_needs_no_key() -> None:
    found = parse({"provider": "openai", "model": "llama", "base_url": "http://localhost:11434/v1/"})

    assert found is not None
    assert (found.url, found.api_key) == ("http://localhost:11434/v1", None)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"provider": "gemini"}, "EUCORA_AI__PROVIDER: Input should be 'openai' or 'anthropic'"),
        ({"model": ""}, "EUCORA_AI__MODEL"),
        ({"base_url": "localhost"}, "EUCORA_AI__BASE_URL"),
        ({"context_tokens": "10"}, "EUCORA_AI__CONTEXT_TOKENS"),
        ({"idle_timeout": "never"}, "EUCORA_AI__IDLE_TIMEOUT"),
        ({"modle": "x"}, "EUCORA_AI__MODLE"),
        ({"api_key": ""}, "EUCORA_AI__API_KEY"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, str], told: str) -> None:
    with pytest.raises(BadAiSettings) as refused:
        parse(WHOLE | change)

    assert told in str(refused.value)
    assert KEY not in str(refused.value)


def test_a_vendor_takes_nobody_without_a_key() -> None:
    with pytest.raises(BadAiSettings, match="API_KEY"):
        parse({"provider": "openai", "model": "gpt"})


def test_the_key_is_in_no_repr() -> None:
    found = parse({name: SecretStr(value) for name, value in WHOLE.items()})

    assert KEY not in repr(found)
    assert "sandbox-secret" not in repr(sandbox_settings("http://127.0.0.1:1"))


def test_the_secrets_of_an_installation_are_known_and_addresses_are_none() -> None:
    planes = {"intune": {"base_url": "https://graph.example", "client_secret": "c1ient-secret"}}
    settings = Settings(
        database_url=SecretStr("postgresql://u:p%40ssword1@h/d"),
        redis_url=SecretStr("redis://:redis-pass@h/0"),
        bootstrap_token=SecretStr("eucora_bootstrap"),
        ai={name: SecretStr(value) for name, value in WHOLE.items()},
        planes={"intune": {name: SecretStr(value) for name, value in planes["intune"].items()}},
    )

    assert secrets_of(settings) == {
        *("p%40ssword1", "p@ssword1", "redis-pass", "eucora_bootstrap", KEY, "c1ient-secret"),
    }
