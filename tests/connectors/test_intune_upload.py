# SPDX-License-Identifier: Apache-2.0
"""Content on its way to Intune, from a file to a published application."""

import asyncio
import hashlib
import json
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from app.connectors.contract import Action, App
from app.connectors.intune import Intune
from app.connectors.sources import FileRules
from app.resilience.errors import (
    PermanentError,
    PolicyError,
)
from tests.connectors.conftest import BLOCK, Make, MakeApp, Sandbox, published, upload
from tests.waiting import eventually

APPS = "/deviceAppManagement/mobileApps"


async def test_the_content_arrives_and_a_repeat_sends_nothing(
    intune: Intune, make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    app_id = await published(intune, app)
    sent = len(sandbox.mutations())

    again = await upload(make(), app, app_id)

    assert len(again) >= 1
    assert len(sandbox.mutations()) == sent
    verified = await intune.verify(Action.UPLOAD, app, None)
    assert verified.holds
    assert verified.external_id == app_id


async def test_progress_grows_to_the_whole_and_only_the_last_is_done(
    intune: Intune, make_app: MakeApp
) -> None:
    app = make_app()
    app_id = await intune.publish(app)

    steps = [step async for step in intune.upload(app, app_id, None)]

    assert [step.done for step in steps] == [False] * (len(steps) - 1) + [True]
    sent = [step.sent_bytes for step in steps]
    assert sent == sorted(sent)
    assert steps[-1].sent_bytes == steps[-1].total_bytes > 20_000
    assert not list(intune._sources.spool.iterdir())


async def test_an_upload_goes_on_elsewhere_after_any_checkpoint(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults(throttle=False)
    whole = make_app()
    steps = len(await upload(make(), whole, await make().publish(whole)))
    for stop in range(1, steps + 1):
        app, elsewhere = make_app(), make()
        app_id = await elsewhere.publish(app)
        checkpoint = await stopped_after(make(), app, app_id, stop)

        last = None
        async for progress in elsewhere.upload(app, app_id, checkpoint):
            last = progress

        assert last is not None
        assert last.done
        assert (await elsewhere.verify(Action.UPLOAD, app, None)).holds
    assert len(sandbox.objects("mobileAppContentFile")) == steps + 1
    assert blob_requests(sandbox) == [5 + 1] * (steps + 1)


async def test_an_upload_goes_on_whose_checkpoint_was_stored_long_before_the_end(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults(throttle=False)
    whole = make_app()
    steps = len(await upload(make(), whole, await make().publish(whole)))
    for stop in range(1, steps + 1):
        for stored in {1, min(2, stop), max(1, stop // 2)}:
            app, elsewhere = make_app(), make()
            app_id = await elsewhere.publish(app)
            checkpoint = await stopped_after(make(), app, app_id, stop, stored=stored)

            async with asyncio.timeout(10):
                await upload(elsewhere, app, app_id, checkpoint)

            assert (await elsewhere.verify(Action.UPLOAD, app, None)).holds, (stop, stored)


async def stopped_after(
    connector: Intune, app: App, app_id: str, values: int, *, stored: int = 0
) -> dict[str, Any]:
    """The checkpoint of a worker that was stopped after so many values: the last, or the ``stored`` one."""
    seen: list[str] = []
    async with aclosing(connector.upload(app, app_id, None)) as steps:
        async for progress in steps:
            seen.append(json.dumps(progress.checkpoint))
            if len(seen) >= values:
                break
    return dict(json.loads(seen[stored - 1]))


def blob_requests(sandbox: Sandbox) -> list[int]:
    """How often each file's storage was written to."""
    return [count for request, count in sandbox.counts().items() if request.startswith("PUT /_blob/")]


async def test_a_checkpoint_of_other_content_starts_afresh(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    first = make()
    app_id = await first.publish(app)
    checkpoint = await stopped_after(first, app, app_id, 6) | {"seal": "of a rotated secret"}
    sent = sum(blob_requests(sandbox))

    steps = [step async for step in make().upload(app, app_id, checkpoint)]

    assert steps[-1].done
    assert sum(blob_requests(sandbox)) == sent + 6


@pytest.mark.parametrize("stored", [{}, {"phase": "unheard of"}, {"nonsense": 1}])
async def test_a_checkpoint_that_cannot_be_read_starts_afresh(
    intune: Intune, make_app: MakeApp, stored: dict[str, Any]
) -> None:
    app = make_app()

    steps = [step async for step in intune.upload(app, await intune.publish(app), stored)]

    assert steps[-1].done


async def test_a_storage_address_that_ends_is_renewed(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    connector = make()
    app_id = await connector.publish(app)
    async with aclosing(connector.upload(app, app_id, None)) as steps:
        async for step in steps:
            if step.sent_bytes == BLOCK:
                sandbox.advance(2 * 3600)  # the token has ended as well
    assert step.done
    renewals = [item for item in sandbox.mutations() if item["path"].endswith("/renewUpload")]
    assert [item["status"] for item in renewals] == [401, 204]


async def test_an_address_about_to_end_is_renewed_before_it_is_used(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    sandbox.faults(sas_lifetime=30.0)
    app = make_app()

    steps = await upload(make(), app, await make().publish(app))

    assert steps
    assert any(item["path"].endswith("/renewUpload") for item in sandbox.mutations())


async def test_storage_that_refuses_for_good_ends_the_upload(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app = make_app()
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "status": 403})

    with pytest.raises(PolicyError):
        await upload(make(), app, await make().publish(app))

    assert sum(blob_requests(sandbox)) == 3


async def test_a_wrong_hash_sends_nothing(intune: Intune, make_app: MakeApp, sandbox: Sandbox) -> None:
    app = make_app()
    forged = App(**{**fields(app), "package": app.package.model_copy(update={"sha256": "0" * 64})})
    app_id = await intune.publish(forged)

    with pytest.raises(PermanentError, match="SHA-256"):
        await upload(intune, forged, app_id)

    assert sandbox.objects("mobileAppContent") == []


def fields(app: App) -> dict[str, Any]:
    return {name: getattr(app, name) for name in App.__slots__}


@pytest.mark.parametrize(
    "form", ["outside", "dotted", "symbolic link", "linked folder", "encoded", "missing"]
)
async def test_a_file_outside_of_the_roots_never_leaves(
    intune: Intune, make_app: MakeApp, files: Path, sandbox: Sandbox, form: str
) -> None:
    secret = files.parent / "private"
    secret.mkdir()
    (secret / "passwd").write_bytes(b"root")
    (files / "link.exe").symlink_to(secret / "passwd")
    (files / "folder").symlink_to(secret)
    uri = {
        "outside": f"file://{secret}/passwd",
        "dotted": f"file://{files}/../private/passwd",
        "symbolic link": f"file://{files}/link.exe",
        "linked folder": f"file://{files}/folder/passwd",
        "encoded": f"file://{files}/%2e%2e/private/passwd",
        "missing": f"file://{secret}/nothing",
    }[form]
    app = make_app()
    digest = hashlib.sha256(b"root").hexdigest()
    stealing = App(
        **{**fields(app), "package": app.package.model_copy(update={"uri": uri, "sha256": digest})}
    )
    app_id = await intune.publish(stealing)

    with pytest.raises(PolicyError, match="EUCORA_PACKAGE_ROOTS"):
        await upload(intune, stealing, app_id)

    assert sandbox.objects("mobileAppContent") == []


@pytest.mark.parametrize(
    ("rules", "kind"),
    [
        (FileRules(), PolicyError),
        (FileRules(allowed_roots=()), PolicyError),
        (FileRules(allowed_roots=(), allow_any_file=True), PolicyError),
        (FileRules(allow_any_file=True), None),
    ],
    ids=["none by default", "no roots", "roots win", "any while all are sandboxes"],
)
async def test_without_roots_only_sandboxes_get_files(
    make: Make, make_app: MakeApp, rules: FileRules, kind: type[Exception] | None
) -> None:
    connector, app = make(services={"files": rules}), make_app()
    app_id = await connector.publish(app)

    if kind is None:
        assert await upload(connector, app, app_id)
    else:
        with pytest.raises(kind):
            await upload(connector, app, app_id)


async def test_a_file_that_is_missing_or_no_file_is_told(
    intune: Intune, make_app: MakeApp, files: Path
) -> None:
    app = make_app()
    app_id = await intune.publish(app)
    for uri in [f"file://{files}", "file://elsewhere/x.exe"]:
        wrong = App(**{**fields(app), "package": app.package.model_copy(update={"uri": uri})})
        with pytest.raises(PermanentError):
            await upload(intune, wrong, app_id)


async def test_cancelling_an_upload_leaves_something_to_go_on_from(
    make: Make, make_app: MakeApp, sandbox: Sandbox
) -> None:
    app, connector = make_app(), make()
    app_id = await connector.publish(app)
    sandbox.faults({"method": "PUT", "path": "/_blob/*", "latency": 3.0})
    task = asyncio.create_task(upload(connector, app, app_id))
    await eventually(lambda: blob_started(sandbox), within=10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    sandbox.faults()

    assert await upload(connector, app, app_id)
    assert len(sandbox.objects("mobileAppContentFile")) == 1


def blob_started(sandbox: Sandbox) -> bool:
    return any(exchange.path.startswith("/intune/_blob/") for exchange in sandbox.recorder.exchanges)
