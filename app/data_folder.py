# SPDX-License-Identifier: Apache-2.0
"""The data directory: one user at a time, and where the servers of it live."""

import fcntl
import os
import pwd
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from app.children import Account, ChildFailed, Report

NOBODY = 65534
# Kept first: what lies in the other two may be swept away by age.
BASES = (Path("/var/lib"), Path("/var/tmp"), Path("/tmp"))  # noqa: S108 - a new folder of mode 0700 is made in them
LONGEST_SOCKETS = 80  # a socket's whole path is limited to 103 bytes on macOS, 107 on Linux


@dataclass(frozen=True)
class DataFolder:
    """A locked data directory. What only servers need is made when it is first asked for."""

    path: Path
    report: Report

    @cached_property
    def account(self) -> Account | None:
        """Whom the servers run as; none: ourselves."""
        return servers_account(self.path)

    @cached_property
    def home(self) -> Path:
        """Where the servers' own folders are: here, or elsewhere if their account cannot reach this place."""
        return find_home(self.path, self.account, self.report)

    @cached_property
    def sockets(self) -> Path:
        """A private folder with a short path."""
        return find_sockets(self.path, self.account)

    @property
    def run(self) -> Path:
        """Notes of running processes."""
        return self.path / "run"

    @property
    def logs(self) -> Path:
        """What the processes say."""
        return self.path / "logs"

    @property
    def programs(self) -> Path:
        """Copies of programs that the servers' account cannot reach where they are installed."""
        folder = self.home / "programs"
        folder.mkdir(mode=0o755, exist_ok=True)
        return folder

    def make(self, folder: Path) -> None:
        """Make a folder that belongs to the servers, if it is missing."""
        if not folder.exists():
            folder.mkdir(mode=0o700)
            give(folder, self.account)

    def identity(self) -> dict[str, Any]:
        """Keyword arguments of ``subprocess`` for the servers' account."""
        return identity(self.account)


@contextmanager
def open_data_folder(path: Path, *, report: Report) -> Iterator[DataFolder]:
    """Make the data directory if it is missing, and hold it until the end.

    Raises:
        ChildFailed: another process holds it, or it belongs to another user.
    """
    path = path.absolute()
    make_private(path)
    with lock(path):
        try:
            yield DataFolder(path, report)
        finally:
            if (sockets := noted_sockets(path)) and is_private(sockets, servers_account(path)):
                shutil.rmtree(sockets)
            (path / "sockets-at").unlink(missing_ok=True)


def make_private(path: Path) -> None:
    """Make the directory for us alone; as root, others may pass through it to what is theirs."""
    try:
        if not path.exists():
            path.mkdir(parents=True)
            path.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise ChildFailed(f"the data directory {path} cannot be made: {error.strerror}") from error
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ChildFailed(f"the data directory {path} cannot be written: choose another with --data-dir")


@contextmanager
def lock(path: Path) -> Iterator[None]:
    """Hold the directory; the system lets go of it however this process ends."""
    with (path / "lock").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise ChildFailed(
                f"the data directory {path} is in use by process {holder}: "
                "stop it, or choose another with --data-dir"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


def servers_account(path: Path) -> Account | None:
    """Whom the servers run as: ourselves, or as root the owner of the data, or ``nobody``."""
    if os.geteuid() != 0:
        return None
    data = path / "postgres"
    if data.exists() and (owner := data.stat()).st_uid != 0:
        return Account(owner.st_uid, owner.st_gid)
    try:
        entry = pwd.getpwnam("nobody")
    except KeyError:
        return Account(NOBODY, NOBODY)
    return Account(entry.pw_uid, entry.pw_gid)


def find_home(path: Path, account: Account | None, report: Report) -> Path:
    """Where the servers keep their data; a folder elsewhere is noted in the directory and found again."""
    note = path / "servers-at"
    if note.exists():
        home = Path(note.read_text().strip())
        if not os.access(home, os.W_OK | os.X_OK):
            raise ChildFailed(f"{note} says that the data is in {home}, which is missing or not ours")
        return home
    if account is None or reachable(path, account):
        return path
    home = make_home(account)
    note.write_text(f"{home}\n")
    report(f"the servers run as uid {account.uid}, which cannot reach {path}: their data is in {home}")
    return home


def make_home(account: Account) -> Path:
    """A folder of the account's own."""
    for base in BASES:
        if os.access(base, os.W_OK) and reachable(base, account):
            return make_owned(base, account)
    bases = ", ".join(map(str, BASES))
    raise ChildFailed(f"no folder for the servers, which run as uid {account.uid}: none of {bases} will do")


def find_sockets(path: Path, account: Account | None) -> Path:
    """The private folder that is noted in the directory, if it is still ours, or a new one."""
    if (noted := noted_sockets(path)) and is_private(noted, account):
        return noted
    folder = make_owned(short_base(), account)
    (path / "sockets-at").write_text(f"{folder}\n")
    return folder


def noted_sockets(path: Path) -> Path | None:
    """Where the servers of a data directory listen, or did when they were killed; none: they were stopped."""
    try:
        return Path((path / "sockets-at").read_text().strip())
    except FileNotFoundError:
        return None


def short_base() -> Path:
    """Where sockets may be."""
    for base in (Path("/tmp"), Path(tempfile.gettempdir())):  # noqa: S108 - a new folder of mode 0700 is made in it
        if os.access(base, os.W_OK | os.X_OK) and len(os.fsencode(base)) < LONGEST_SOCKETS - 20:
            return base
    raise ChildFailed("no folder for sockets: make /tmp writable, or set TMPDIR to a short path")


def make_owned(base: Path, account: Account | None) -> Path:
    """A new folder that only the servers' account, and root, may enter."""
    folder = Path(tempfile.mkdtemp(prefix="eucora-", dir=base))
    give(folder, account)
    return folder


def give(folder: Path, account: Account | None) -> None:
    """Hand a folder that we made to the servers' account."""
    if account is not None:
        os.chown(folder, account.uid, account.gid)


def is_private(folder: Path, account: Account | None) -> bool:
    """Whether a folder still exists and is for the servers alone."""
    try:
        status = folder.lstat()
    except FileNotFoundError:
        return False
    owner = account.uid if account else os.geteuid()
    return stat.S_ISDIR(status.st_mode) and stat.S_IMODE(status.st_mode) == 0o700 and status.st_uid == owner


def reachable(folder: Path, account: Account) -> bool:
    """Whether the account can enter a folder: asked of the system, which knows about more than mode bits."""
    command = ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)]
    try:
        outcome = subprocess.run(command, cwd="/", capture_output=True, check=False, **identity(account))
    except OSError as error:
        raise ChildFailed(
            f"the servers must not run as root, and this process may not change to uid {account.uid} "
            f"({error}): start it as a plain user"
        ) from error
    return outcome.returncode == 0


def identity(account: Account | None) -> dict[str, Any]:
    """Keyword arguments of ``subprocess`` that run a command as the account."""
    return {} if account is None else {"user": account.uid, "group": account.gid, "extra_groups": []}
