# SPDX-License-Identifier: Apache-2.0
"""Intune when it is slow, wrong or down, and what must not be told of it."""

import json
import logging
from contextlib import aclosing
from typing import Any

import pytest
from pydantic import SecretStr

from app.connectors.contract import Action
from app.connectors.intune import Intune, IntuneSettings
from app.resilience import RetryProfile
from app.resilience.errors import (
    AmbiguousError,
    AuthError,
    CallError,
    PermanentError,
    PolicyError,
    Throttled,
    TransientError,
)
from tests.connectors.conftest import Make, MakeApp, Sandbox, assignment, published, upload

APPS = "/deviceAppManagement/mobileApps"


async def test_bad_credentials_are_told_from_an_outage(make: Make, sandbox: Sandbox) -> None:
    with pytest.raises(AuthError, match="7000215"):
        await make(client_secret="wrong").check()
    sandbox.faults({"path": "/oauth2/*", "status": 503})
    with pytest.raises(TransientError):
        await make().check()


async def test_a_lost_answer_to_the_creation_is_ambiguous_and_verify_finds_the_application(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    before = await intune.verify(Action.PUBLISH, app, None)
    sandbox.faults({"method": "POST", "path": APPS, "after": True, "reset": True})
    with pytest.raises(AmbiguousError):
        await intune.publish(app)
    sandbox.faults()

    found = await intune.verify(Action.PUBLISH, app, None)

    assert not before.holds
    assert found.holds
    assert await intune.publish(app) == found.external_id
    assert len(sandbox.objects("mobileApp")) == 1


async def test_an_unreadable_answer_to_the_creation_is_ambiguous_too(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults({"method": "POST", "path": APPS, "after": True, "status": 201, "body": "<html>"})

    with pytest.raises(AmbiguousError):
        await intune.publish(make_app())


async def test_a_lost_answer_to_an_assignment_is_verified(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    given = assignment(app, await published(intune, app), sandbox.group())
    sandbox.faults({"method": "POST", "path": f"{APPS}/*/assignments", "after": True, "reset": True})
    with pytest.raises(AmbiguousError):
        await intune.assign(given)
    sandbox.faults()

    verified = await intune.verify(Action.ASSIGN, app, given)

    assert verified.holds
    assert await intune.assign(given) == verified.external_id
    assert len(sandbox.objects("mobileAppAssignment")) == 1


async def test_the_token_may_end_in_the_middle(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    app = make_app()
    app_id = await intune.publish(app)
    done = False
    async with aclosing(intune.upload(app, app_id, None)) as steps:
        async for step in steps:
            sandbox.advance(3700)
            done = step.done
    given = assignment(app, app_id, sandbox.group())

    await intune.assign(given)

    assert done
    assert sandbox.counts()["POST /oauth2/v2.0/token"] > 5


async def test_a_long_throttle_is_a_deferral_and_a_short_one_is_waited_for(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    sandbox.faults({"path": f"{APPS}*", "status": 429, "headers": {"Retry-After": "0"}, "probability": 0.4})
    assert await intune.publish(app)

    sandbox.faults({"path": f"{APPS}*", "status": 429, "headers": {"Retry-After": "120"}})
    with pytest.raises(Throttled) as raised:
        await intune.publish(make_app())

    assert raised.value.retry_after == 120.0


async def test_a_rollout_through_a_storm_makes_each_object_once(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    storm = [
        {"path": "/deviceAppManagement/*", "status": 503, "probability": 0.08},
        {
            "path": "/deviceAppManagement/*",
            "status": 429,
            "headers": {"Retry-After": "0"},
            "probability": 0.05,
        },
        {"path": "/deviceAppManagement/*", "after": True, "reset": True, "probability": 0.05},
        {"path": "/deviceAppManagement/*", "half_body": True, "probability": 0.05},
        {"path": "/_blob/*", "status": 500, "probability": 0.1},
    ]
    sandbox.faults(*storm)
    app, patient = make_app(), RetryProfile(attempts=6, shortest=0.01, longest=0.03, total=20.0)
    intune = make(services={"profile": patient})

    app_id = await insisted(lambda: intune.publish(app))
    stored: dict[str, Any] = {}

    async def one_run() -> None:
        async with aclosing(intune.upload(app, app_id, dict(stored))) as steps:
            async for step in steps:
                stored.update(step.checkpoint)

    await insisted(one_run)
    given = assignment(app, app_id, sandbox.group())
    await insisted(lambda: intune.assign(given))
    sandbox.faults()

    assert len(sandbox.objects("mobileApp")) == 1
    assert len(sandbox.objects("mobileAppAssignment")) == 1
    assert (await intune.verify(Action.UPLOAD, app, None)).holds


async def insisted(step: Any) -> Any:
    """What a worker does: try again whatever may pass; each step finds what an earlier try did."""
    for _ in range(30):
        try:
            return await step()
        except (TransientError, AmbiguousError):
            continue
    raise AssertionError("thirty tries were not enough")


async def test_an_outage_opens_the_breaker_for_all_calls_of_the_plane(
    intune: Intune, sandbox: Sandbox
) -> None:
    sandbox.faults({"path": "/deviceAppManagement/*", "status": 503})
    codes = []
    for _ in range(4):
        with pytest.raises(CallError) as raised:
            await intune.check()
        codes.append(raised.value.code)

    assert codes[0] == "transient"
    assert codes[-1] == "circuit_open"
    assert sandbox.counts()[f"GET {APPS}"] == 5


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"status": 401}, AuthError),
        ({"status": 403}, PolicyError),
        ({"status": 404}, PermanentError),
        ({"status": 422}, PermanentError),
        ({"status": 500}, TransientError),
        ({"status": 504}, TransientError),
        ({"reset": True}, TransientError),
        ({"half_body": True}, TransientError),
        ({"status": 200, "body": "<html>not Graph</html>"}, PermanentError),
        ({"status": 200, "body": ""}, PermanentError),
        ({"status": 200, "body": "[1]"}, PermanentError),
        ({"status": 200, "body": '{"value": 3}'}, PermanentError),
        ({"status": 200, "body": '{"value": ['}, PermanentError),
    ],
    ids=lambda value: None if isinstance(value, type) else str(value),
)
async def test_odd_answers_have_a_class(
    intune: Intune, sandbox: Sandbox, fault: dict[str, Any], kind: type[CallError]
) -> None:
    sandbox.faults({"path": "/deviceAppManagement/*", **fault})

    with pytest.raises(kind):
        await intune.check()


async def test_a_refusal_is_told_in_graphs_own_words(intune: Intune, sandbox: Sandbox) -> None:
    sandbox.faults({"path": "/deviceAppManagement/*", "status": 403})

    with pytest.raises(PolicyError) as raised:
        await intune.check()

    assert str(raised.value) == "intune answered 403: Forbidden: The sandbox was asked to answer this."


async def test_a_page_that_leads_to_another_host_is_refused(intune: Intune, sandbox: Sandbox) -> None:
    page = {"value": [], "@odata.nextLink": "https://evil.example/v1.0/deviceManagement/managedDevices"}
    sandbox.faults({"path": "/deviceManagement/*", "status": 200, "body": json.dumps(page)})

    with pytest.raises(PermanentError, match="another host"):
        _ = [page async for page in intune.members(sandbox.group())]


async def test_no_secret_stands_in_a_log_a_checkpoint_or_a_repr(
    make: Make,
    make_app: MakeApp,
    sandbox: Sandbox,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("httpx").setLevel(logging.INFO)
    connector, app = make(), make_app()
    app_id = await connector.publish(app)
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "status": 400}, token_lifetime=3599)
    with pytest.raises(PermanentError) as raised:
        await upload(connector, app, app_id)
    sandbox.faults()
    checkpoints = await upload(connector, app, app_id)

    told = capfd.readouterr()
    texts = [caplog.text, told.out, told.err, repr(connector), repr(connector._settings), str(raised.value)]
    texts += [repr(raised.value), json.dumps(checkpoints), repr(connector._graph), repr(connector._http)]
    texts += [line for record in caplog.records for line in map(str, record.__dict__.values())]
    for secret in secrets_of(connector, sandbox):
        assert not [text for text in texts if secret in text], secret


async def test_a_storage_address_that_cannot_be_used_is_not_told(
    intune: Intune, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await intune.publish(app)
    file = {
        "id": "1",
        "uploadState": "azureStorageUriRequestSuccess",
        "azureStorageUri": "https://user:pw@host:99999/x?sig=SECRET",
    }
    sandbox.faults(
        {"method": "GET", "path": f"{APPS}/*/files/*", "status": 200, "body": json.dumps(file)},
    )

    with pytest.raises(PermanentError, match="address") as raised:
        await upload(intune, app, app_id)

    assert not [secret for secret in ("SECRET", "pw", "99999") if secret in raised.value.detail]


def secrets_of(connector: Intune, sandbox: Sandbox) -> list[str]:
    """The client secret, the token, every signature of a storage address, and every key of content."""
    held = connector._http._token_source
    assert held is not None
    found = [connector._settings.client_secret.get_secret_value(), *held.secrets()]
    for exchange in sandbox.recorder.exchanges:
        found += [part[4:] for part in exchange.query.split("&") if part.startswith("sig=")]
        if exchange.path.endswith("/commit"):
            sheet = json.loads(exchange.request)["fileEncryptionInfo"]
            found += [sheet["encryptionKey"], sheet["macKey"]]
    assert len(found) >= 6
    return found


def test_settings_hide_the_secret() -> None:
    settings = IntuneSettings(token_url="https://x/token", client_id="me", client_secret=SecretStr("hidden"))

    assert "hidden" not in repr(settings) + str(settings.model_dump())
