# SPDX-License-Identifier: Apache-2.0
"""``/docs``: the document to read and to try; every script comes from here, so it works offline."""

from pathlib import Path

import fastapi_offline
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import HTMLResponse
from starlette.staticfiles import StaticFiles

ASSETS = "/docs-assets"


def add_reference(app: FastAPI) -> None:
    """Serve the page and what it is made of; no token is needed to read it."""
    page = get_swagger_ui_html(
        openapi_url=str(app.openapi_url),
        title=app.title,
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )

    async def reference(_: Request) -> HTMLResponse:
        return page

    app.mount(ASSETS, StaticFiles(directory=Path(fastapi_offline.__file__).parent / "static"))
    app.add_route("/docs", reference, include_in_schema=False)
