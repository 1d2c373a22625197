# SPDX-License-Identifier: Apache-2.0
"""The other libraries: in a folder of their own, beside the product's packages and never among them."""

import importlib.util
import os
import shutil
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE / "requirements.lock"
FOLDER = HERE.parent / ".bench"


def install() -> Path:
    """Install what the lock names unless that was done; the folder, which this process can import from.

    Raises:
        SystemExit: neither pip nor uv is there, or it failed.
    """
    stamp = FOLDER / "installed"
    wanted = sha256(LOCK.read_bytes() + sys.version.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        shutil.rmtree(FOLDER, ignore_errors=True)
        print("eucora: installing what the product is compared with", file=sys.stderr)  # noqa: T201
        command = [*installer(), "--quiet", "--require-hashes", "--no-deps", "--target", str(FOLDER)]
        done = subprocess.run([*command, "-r", str(LOCK)], check=False)
        if done.returncode:
            raise SystemExit(
                "eucora: the benchmarks' packages could not be installed; --no-peers goes without"
            )
        stamp.write_text(wanted)
    share(FOLDER)
    return FOLDER


def installer() -> list[str]:
    """Either pip or uv, whatever made the product's environment."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-compile"]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--python", sys.executable]
    raise SystemExit("eucora: neither pip nor uv is here to install the benchmarks' packages")


def share(folder: Path) -> None:
    """Let this process and its children find the folder, after everything that the product brings itself."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if str(folder) not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, paths), str(folder)])
