# SPDX-License-Identifier: Apache-2.0
"""What an operator sets of the language model is checked, named when it is wrong, and never told."""

import pytest
from pydantic import SecretStr

from app.ai.settings import AiSettings, BadAiSettings, parse, sandbox_settings
from app.settings import Settings, secrets_of

KEY = "sk-a-key-that-nobody-may-see"
WHOLE = {"provider": "openai", "model": "gpt", "api_key": KEY}


def test_nothing_set_is_no_model() -> None:
    assert parse({}) is None


def test_what_is_empty_is_not_set() -> None:
    names = AiSettings.model_fields

    assert parse(dict.fromkeys(names, "")) is None
    assert parse(dict.fromkeys(names, SecretStr(" "))) is None
    assert parse(dict.fromkeys(names, "") | WHOLE) == parse(WHOLE)


def test_an_answer_may_take_half_of_the_context() -> None:
    found = parse(WHOLE | {"max_output_tokens": "16000"})

    assert found is not None
    assert found.max_output_tokens * 2 == found.context_tokens


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
        ({"model": " "}, "EUCORA_AI__MODEL: Field required"),
        ({"api_key": ""}, "EUCORA_AI: set API_KEY"),
        ({"first_timeout": "0"}, "EUCORA_AI__FIRST_TIMEOUT"),
        ({"max_output_tokens": "16001"}, "EUCORA_AI: MAX_OUTPUT_TOKENS (16001) must be at most half of"),
        ({"context_tokens": "4095"}, "CONTEXT_TOKENS (4095)"),
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
    settings = Settings(
        database_url=SecretStr("postgresql://u:p%40ssword1@h/d"),
        redis_url=SecretStr("redis://:redis-pass@h/0"),
        bootstrap_token=SecretStr("eucora_bootstrap"),
        ai={name: SecretStr(value) for name, value in WHOLE.items()},
        planes=hidden({"intune": {"base_url": "https://graph.example", "client_secret": "c1ient-secret"}}),
    )

    assert secrets_of(settings) == {
        *("p%40ssword1", "p@ssword1", "redis-pass", "eucora_bootstrap", KEY, "c1ient-secret"),
    }


def hidden(planes: dict[str, dict[str, str]]) -> dict[str, dict[str, SecretStr]]:
    return {
        plane: {name: SecretStr(value) for name, value in given.items()} for plane, given in planes.items()
    }


def test_what_is_only_called_like_a_secret_is_none() -> None:
    ordinary = {
        "key_header": "authorization",
        "tokens_per_day": "2000000",
        "max_output_tokens": "204800",
        "output_limit_field": "max_completion_tokens",
        "model": "monkey-7b",
    }
    planes = {
        "intune": {"client_id": "11111111-2222", "token_url": "https://login.example/token"},
        "landscape": {"email": "it@keys.example", "username": "passwords", "account": "standalone"},
        "jamf": {"secret_name": "ordinary", "key_header": "x-api-key", "supersede": "everything"},
    }
    settings = Settings(
        ai={name: SecretStr(value) for name, value in ordinary.items()}, planes=hidden(planes)
    )

    assert secrets_of(settings) == frozenset()


def test_the_secrets_of_planes_are_known() -> None:
    names = ("client_secret", "password", "token", "secret_key", "access_key", "API_TOKEN")
    planes = {"jamf": {name: f"value-of-{name}" for name in names} | {"password": "short"}}

    assert secrets_of(Settings(planes=hidden(planes))) == {
        f"value-of-{name}" for name in names if name != "password"
    }


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("postgresql://h/d?user=u&password=p%40ss%20word", {"p%40ss%20word", "p@ss word"}),
        ("postgresql://h/d?password=p+a+s+s", {"p+a+s+s", "p a s s"}),
        ("postgresql://h/d?password=short&sslpassword=of-the-key&sslmode=require", {"of-the-key"}),
        ("postgresql://user:of/a?path@h/d", {"of/a?path"}),
        ("postgresql://user:[bracket@h/d", {"[bracket"}),
        ("postgresql://h1:5432,h2:5432/d", set()),
        ("redis://user@h/0", set()),
        ("redis://:p@ssword@h/0", {"p@ssword"}),
        ("rediss://h/0?ssl_keyfile=/etc/redis/tls.key", set()),
        (
            "redis+sentinel://u:master-pass@a:1,b:2/service/0?sentinel_username=watcher&sentinel_password=w%3Dtcher",
            {"master-pass", "w%3Dtcher", "w=tcher"},
        ),
        ("unix://:socket-pass@/run/redis.sock?db=1", {"socket-pass"}),
    ],
)
def test_passwords_in_addresses_are_known_as_they_stand_there_and_as_they_are(
    url: str, secrets: set[str]
) -> None:
    found = [
        secrets_of(Settings(database_url=SecretStr(url))),
        secrets_of(Settings(redis_url=SecretStr(url))),
    ]

    assert all(secrets <= each for each in found)
    assert all(len(each) <= len(secrets) + 1 for each in found)  # two readings of one address may differ
