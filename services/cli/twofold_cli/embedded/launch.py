"""Become another program: under another account, in a process group of its own, mortal with its parent.

Run as a script (`python -I -S launch.py --parent PID --signal N [--uid N --gid N] [--folder DIR] -- argv…`),
never imported. Without argv it only proves that the account may enter the folder. The order matters: a change
of credentials clears the death signal, so that is set last; and a parent that died before it was set is
noticed by looking at who the parent is now.
"""

import argparse
import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
REFUSED = 126


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--signal", type=int, required=True)
    parser.add_argument("--uid", type=int)
    parser.add_argument("--gid", type=int)
    parser.add_argument("--folder")
    parser.add_argument("argv", nargs="*")
    return parser.parse_args()


def take_account(uid: int | None, gid: int | None) -> None:
    if uid is None or gid is None:
        return
    os.setgroups([gid])
    os.setgid(gid)
    os.setuid(uid)


def die_with(parent: int, death_signal: int, libc: ctypes.CDLL) -> None:
    # Elsewhere than on Linux nothing like it exists: there the parent ends its children at exit (child.py).
    if sys.platform == "linux":
        libc.prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit(f"the parent {parent} has gone")


def main() -> None:
    order = arguments()
    libc = ctypes.CDLL(None)
    # A group of its own, so that Ctrl-C at the terminal reaches the parent alone, which stops all in order.
    # Not a session of its own: as long as we share the parent's, the kernel continues us (SIGCONT) when the
    # parent dies while we are stopped, and the death signal is then acted upon.
    os.setpgid(0, 0)
    # Python ignores these two, and what is ignored stays so through exec.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    try:
        take_account(order.uid, order.gid)
        if order.folder is not None:
            os.chdir(order.folder)
        die_with(order.parent, order.signal, libc)
        if order.argv:
            os.execv(order.argv[0], order.argv)
    except OSError as error:
        print(f"cannot start {order.argv or order.folder}: {error}", file=sys.stderr)
        sys.exit(REFUSED)


if __name__ == "__main__":
    main()
