# SPDX-License-Identifier: Apache-2.0
"""The launcher ``eucora``, in checkouts whose locks are cut down so that a test costs seconds."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.waiting import eventually

ROOT = Path(__file__).resolve().parent.parent
PYTHON = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
TOOLS = ("cat", "cksum", "date", "dirname", "mkdir", "mv", "readlink", "rm", "ln", "sh", "sleep")
RUNTIME, TOOL = "h11", "iniconfig"

COMMAND_LINE = f"""
import importlib.metadata, json, os, sys

def version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None

print(json.dumps({{
    "arguments": sys.argv[1:], "folder": os.getcwd(), "file": __file__, "prefix": sys.prefix,
    "versions": [version("{RUNTIME}"), version("{TOOL}")],
}}))
"""


def pin_of(lock: str, name: str) -> str:
    """One package's lines of a real lock, hashes and all."""
    match = re.search(rf"^{name}==.*?(?=^\w|\Z)", (ROOT / lock).read_text(), re.MULTILINE | re.DOTALL)
    assert match
    return match.group()


def version_of(lock: str, name: str) -> str:
    return pin_of(lock, name).split()[0].split("==")[1]


@dataclass(frozen=True)
class Checkout:
    """A folder with the real launcher, and how to run it."""

    root: Path
    path: str

    @classmethod
    def make(cls, root: Path, path: str) -> "Checkout":
        (root / "app").mkdir(parents=True)
        (root / "app" / "__init__.py").touch()
        (root / "app" / "cli.py").write_text(COMMAND_LINE)
        shutil.copy(ROOT / "eucora", root)
        shutil.copy(ROOT / "pyproject.toml", root)
        (root / "requirements.lock").write_text(pin_of("requirements.lock", RUNTIME))
        (root / "requirements-dev.lock").write_text(
            pin_of("requirements-dev.lock", RUNTIME) + pin_of("requirements-dev.lock", TOOL)
        )
        return cls(root, path)

    def copy(self, root: Path, path: str | None = None) -> "Checkout":
        shutil.copytree(self.root, root, symlinks=True)
        return Checkout(root, path or self.path)

    def change_lock(self) -> None:
        with (self.root / "requirements.lock").open("a") as lock:
            lock.write(pin_of("requirements-dev.lock", TOOL))

    def start(
        self, *arguments: str, launcher: Path | None = None, cwd: Path | None = None, python: str = ""
    ) -> subprocess.Popen[str]:
        kept = {
            name: value for name, value in os.environ.items() if not name.startswith(("EUCORA_", "PYTHON"))
        }
        return subprocess.Popen(
            [launcher or self.root / "eucora", *arguments],
            cwd=cwd,
            env=kept | {"PATH": self.path, "EUCORA_PYTHON": python},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, **options: Any) -> tuple[dict[str, Any], str]:
        """What the command line saw, and what the launcher said."""
        process = self.start(*arguments, **options)
        out, said = process.communicate(timeout=120)
        assert process.returncode == 0, said
        return json.loads(out), said


def folder_of_tools(folder: Path, **more: Path) -> str:
    """A PATH on which there is nothing but what the launcher may count on."""
    folder.mkdir()
    found = {name: Path(place) for name in TOOLS if (place := shutil.which(name))}
    for name, target in (found | more).items():
        (folder / name).symlink_to(target)
    return str(folder)


def real_uv() -> Path | None:
    """The binary; a version manager's shim looks for its manager on PATH."""
    ran = (
        subprocess.run(["uv", "--version"], capture_output=True, check=False) if shutil.which("uv") else None
    )
    if ran is None or ran.returncode != 0:
        return None
    shown = subprocess.run(
        ["uv", "run", "--no-project", "--quiet", "sh", "-c", 'echo "$UV"'],
        capture_output=True,
        check=True,
        text=True,
        cwd="/",
    )
    return Path(shown.stdout.strip())


@pytest.fixture(scope="module")
def uv() -> Path | None:
    return real_uv()


@pytest.fixture(scope="module", autouse=True)
def package_index(uv: Path | None, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nothing here works where no package can be had; asked of the installer, not of the launcher."""
    place, wanted = (
        str(tmp_path_factory.mktemp("index")),
        f"{RUNTIME}=={version_of('requirements.lock', RUNTIME)}",
    )
    if uv:
        command = [str(uv), "pip", "install", "--no-deps", "--target", place, "--python", str(PYTHON), wanted]
    else:
        command = [str(PYTHON), "-m", "pip", "download", "--no-deps", "--dest", place, wanted]
    if subprocess.run(command, capture_output=True, check=False, cwd=ROOT).returncode != 0:
        pytest.skip("neither uv nor pip gets a package here")


@pytest.fixture(scope="module")
def path(uv: Path | None, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The quickest way that is here."""
    more = {"python3": PYTHON} | ({"uv": uv} if uv else {})
    return folder_of_tools(tmp_path_factory.mktemp("path") / "bin", **more)


@pytest.fixture(scope="module")
def ready(path: str, tmp_path_factory: pytest.TempPathFactory) -> Checkout:
    """A checkout whose .venv is filled; never changed, only copied."""
    checkout = Checkout.make(tmp_path_factory.mktemp("ready") / "with a blank", path)
    checkout.run()
    return checkout


@pytest.fixture
def bare_python(tmp_path: Path) -> Path:
    """An interpreter with pip and without venv, as Debian's."""
    made = tmp_path / "bare"
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", "--system-site-packages", made], check=True)
    (site,) = made.glob("lib/python3*/site-packages")
    (site / "hidden.pth").write_text("import sys; sys.modules['venv'] = sys.modules['ensurepip'] = None\n")
    # A script, for a symbolic link to an interpreter leads away from the folder that makes it what it is.
    python = tmp_path / "bare-python"
    python.write_text(f"#!/bin/sh\nexec '{made}/bin/python' \"$@\"\n")
    python.chmod(0o755)
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        pytest.skip("this Python has no pip of its own")
    return python


@dataclass(frozen=True)
class Route:
    """A PATH that leaves one way to fill .venv."""

    way: str
    path: str


@pytest.fixture(params=["uv", "venv", "pip --target"])
def route(request: pytest.FixtureRequest, uv: Path | None, tmp_path: Path) -> Route:
    """Each of the three ways."""
    way: str = request.param
    if way == "uv":
        if uv is None:
            pytest.skip("no uv here")
        return Route(way, folder_of_tools(tmp_path / "bin", python3=PYTHON, uv=uv))
    python = PYTHON if way == "venv" else request.getfixturevalue("bare_python")
    return Route(way, folder_of_tools(tmp_path / "bin", python3=python))


def test_a_checkout_with_a_blank_in_its_path_fills_its_venv_once(route: Route, tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "with a blank", route.path)

    first, said_first = checkout.run("deploy", "two words", "", cwd=tmp_path)
    second, said_second = checkout.run("deploy", "two words", "", cwd=tmp_path)

    assert first == second
    assert first["arguments"] == ["deploy", "two words", ""]
    assert first["folder"] == str(tmp_path)
    assert first["prefix"] == str(checkout.root / ".venv")
    assert first["versions"] == [version_of("requirements.lock", RUNTIME), None]
    assert f".venv with {route.way} and" in said_first
    assert "ready after" in said_first
    assert said_second == ""


def test_only_the_tests_get_the_development_lock(ready: Checkout, tmp_path: Path) -> None:
    checkout = ready.copy(tmp_path / "checkout")

    before, _ = checkout.run("up")
    tested, _ = checkout.run("test", "-k", "a or b")
    _, said_after = checkout.run("up")

    assert before["versions"][1] is None
    assert tested["versions"][1] == version_of("requirements-dev.lock", TOOL)
    assert tested["arguments"] == ["test", "-k", "a or b"]
    assert said_after == ""


def test_a_changed_lock_is_installed(ready: Checkout, tmp_path: Path) -> None:
    checkout = ready.copy(tmp_path / "checkout")
    checkout.change_lock()

    seen, said = checkout.run()

    assert None not in seen["versions"]
    assert "bringing .venv up to date" in said


async def test_an_install_that_was_killed_is_done_again(path: str, tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "checkout", path)
    process = checkout.start()
    await eventually((checkout.root / ".venv" / "pyvenv.cfg").exists, within=30)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=10)

    seen, _ = checkout.run()

    assert seen["versions"][0] == version_of("requirements.lock", RUNTIME)


def test_of_two_launchers_at_once_one_installs(path: str, tmp_path: Path) -> None:
    checkout = Checkout.make(tmp_path / "checkout", path)

    both = [checkout.start(), checkout.start()]
    said = [process.communicate(timeout=120)[1] for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    assert "".join(said).count("ready after") == 1


def test_each_of_two_checkouts_runs_its_own_code(ready: Checkout, tmp_path: Path) -> None:
    one, other = ready.copy(tmp_path / "one"), ready.copy(tmp_path / "other")

    seen, _ = one.run(cwd=other.root)

    assert seen["file"] == str(one.root / "app" / "cli.py")
    assert seen["prefix"] == str(one.root / ".venv")


def test_a_symbolic_link_to_the_launcher_belongs_to_its_checkout(ready: Checkout, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "first").symlink_to(ready.root / "eucora")
    (tmp_path / "second").symlink_to("bin/first")

    seen, said = ready.run(launcher=tmp_path / "second", cwd=tmp_path)

    assert seen["file"] == str(ready.root / "app" / "cli.py")
    assert said == ""


def test_a_shim_with_nothing_behind_it_is_passed_over(
    ready: Checkout, uv: Path | None, tmp_path: Path
) -> None:
    shim = tmp_path / "shim"
    shim.write_text("#!/bin/sh\necho 'python3: command not found' >&2\nexit 127\n")
    shim.chmod(0o755)
    tools = {"python3": shim, PYTHON.name: PYTHON} | ({"uv": uv} if uv else {})
    checkout = ready.copy(tmp_path / "checkout", folder_of_tools(tmp_path / "bin", **tools))
    checkout.change_lock()

    _, said = checkout.run()

    assert f"/{PYTHON.name})" in said


@pytest.mark.parametrize("python", ["", "/bin/sh"], ids=["none", "not one"])
def test_without_a_python_that_fits_it_says_what_it_needs(tmp_path: Path, python: str) -> None:
    checkout = Checkout.make(tmp_path / "checkout", folder_of_tools(tmp_path / "bin"))

    process = checkout.start(python=python)
    _, said = process.communicate(timeout=10)

    assert process.returncode == 1
    assert "Python 3.11 to 3.14" in said
    assert "EUCORA_PYTHON" in said
    assert not (checkout.root / ".venv").exists()
