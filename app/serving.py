# SPDX-License-Identifier: Apache-2.0
"""The processes that serve, without what only the command line needs: ``python -m app.serving worker``.

What is imported is held for as long as they live, so they also leave out what libraries import in case it is
there, and would use for nothing that happens here.
"""

import gc
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from types import ModuleType

TERMINALS = ("rich", "pygments")
"""What structlog and httpx draw tracebacks and answers with, on a terminal."""
OF_A_WORKER = (*TERMINALS, "click")
"""And what serves nobody."""
TOKENS = "jwt"
"""What redis reads tokens with that we do not give it; it brings all of cryptography."""


def command(name: str, *arguments: str) -> tuple[str, ...]:
    """How it is started."""
    return sys.executable, "-m", "app.serving", name, *arguments


def leave_out(names: Collection[str]) -> None:
    """Have these not be there for whoever asks whether they are."""
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None means this, and is documented
    sys.modules[TOKENS] = ModuleType(TOKENS)


@contextmanager
def loading() -> Iterator[None]:
    """What is imported stays: looking for garbage in it meanwhile takes a seventh of the time of a start."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def serve_api(host: str, port: str, grace: str) -> None:
    """The API."""
    leave_out(TERMINALS)
    with loading():
        from setproctitle import setproctitle

        from app.main import serve
        from app.settings import Settings

    setproctitle("eucora api")
    serve(Settings(), host=host, port=int(port), grace=int(grace))


def work() -> None:
    """One worker."""
    leave_out(OF_A_WORKER)
    with loading():
        from setproctitle import setproctitle

        from app.settings import Settings
        from workers.main import run_worker

    setproctitle("eucora worker")
    run_worker(Settings())


def main(name: str, *arguments: str) -> None:
    """Be one of them; a foreseen failure is one sentence, not a traceback."""
    from pydantic import ValidationError

    from app.errors import ControlPlaneError
    from app.settings import what_is_wrong

    try:
        serve_api(*arguments) if name == "api" else work()
    except ValidationError as error:
        sys.stderr.write(f"eucora: {what_is_wrong(error)}\n")
        sys.exit(2)
    except ControlPlaneError as error:
        sys.stderr.write(f"eucora: {error.detail}\n")
        sys.exit(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
