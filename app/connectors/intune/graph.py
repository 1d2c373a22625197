# SPDX-License-Identifier: Apache-2.0
"""Microsoft Graph's conventions: where its pages have what, how it words a refusal, what it correlates by."""

import httpx

from app.connectors import rest
from app.connectors.contract import App, Assignment
from app.connectors.rest import Headers, Rest
from app.resilience import ResilientClient

SERVICE = "intune"
CORRELATION = (*rest.CORRELATION, "client-request-id")


def effect_headers(effect: App | Assignment) -> Headers:
    """What every request made for an effect carries."""
    return rest.effect_headers(effect, names=CORRELATION)


def graph(http: ResilientClient) -> Rest:
    """Graph as the connector speaks it."""
    return Rest(http, "Graph", items="value", link="@odata.nextLink", correlation=CORRELATION)


def describe(answer: httpx.Response) -> str:
    """Code and message of Graph's error body; the body itself where it is none."""
    try:
        error = answer.json()["error"]
        return f"{error['code']}: {error['message']}"
    except (ValueError, KeyError, TypeError):
        return answer.text
