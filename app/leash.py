# SPDX-License-Identifier: Apache-2.0
"""Run one program so that it dies with its parent. Started by path: it knows nothing of this package.

``python -I -S leash.py PARENT SIGNAL UID:GID FOLDER PROGRAM ARGUMENT…`` becomes the program, keeping its
process id. A ``preexec_fn`` could do the same, but runs Python in a fork of a process that may have threads.
"""

import ctypes  # loaded while we are still who we were: another account may not reach the library
import os
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def become(account: str) -> None:
    """Give up root for ``uid:gid``, or stay who we are if it is empty."""
    if account:
        uid, gid = map(int, account.split(":"))
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)


def die_with(parent: int, number: int) -> None:
    """Ask the kernel to send ``number`` when the parent ends; a change of uid would clear it."""
    if sys.platform != "linux":
        return  # no such call elsewhere: the next start finds what was left by its process id
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, number, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it ended before we asked
        sys.exit("the parent is gone")


def main(parent: str, number: str, account: str, folder: str, *command: str) -> None:
    """Become ``command`` in ``folder``."""
    become(account)
    die_with(int(parent), int(number))
    os.umask(0o077)
    os.chdir(folder)
    os.execv(command[0], command)  # noqa: S606 - an argument list, no shell


if __name__ == "__main__":
    main(*sys.argv[1:])
