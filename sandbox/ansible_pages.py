# SPDX-License-Identifier: Apache-2.0
"""AWX's conventions: pages by number whose next is a path, instants with microseconds."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from sandbox.journal import Document
from sandbox.rest import Refused, number, require_known

API_PREFIXES = ("/api/v2", "/api/controller/v2")
PAGE, LARGEST_PAGE = 25, 200


def page(
    request: Request,
    total: int,
    rows: Callable[[int, int], Sequence[Document]],
    *,
    filters: Sequence[str] = (),
) -> Response:
    """One page of ``total`` rows; ``rows(skip, top)`` makes only those that are asked for."""
    require_known(request, ["page", "page_size", "order_by", *filters])
    size = number(request, "page_size", PAGE, least=1, most=LARGEST_PAGE)
    place = number(request, "page", 1, least=1)
    if place > 1 and (place - 1) * size >= total:
        raise Refused(404, "Invalid page.")
    return JSONResponse(
        {
            "count": total,
            "next": link(request, place + 1) if place * size < total else None,
            "previous": link(request, place - 1) if place > 1 else None,
            "results": rows((place - 1) * size, size),
        }
    )


def link(request: Request, place: int) -> str:
    """A path, without the host, as AWX writes it."""
    scope = request.scope["sandbox.scope"]
    return f"{scope['path']}?{urlencode({**request.query_params, 'page': place}, safe=',')}"


def stamp(at: float) -> str:
    """An instant as AWX writes it."""
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
