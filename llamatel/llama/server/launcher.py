"""Runs a command that cannot outlive the process that requested it.

Run by path as a script (``python -I -S launcher.py PARENT_PID COMMAND...``): it imports nothing of llamatel.

On Linux the kernel is set to kill it when its parent dies (even by SIGKILL) and it becomes the command, so no process
stays in between. Elsewhere it stays as the command's parent and watches its own parent.
"""

import os
import signal
import subprocess
import sys

_PR_SET_PDEATHSIG = 1
_WATCH_S = 0.5


def _become(parent: int, command: list[str]) -> None:
    """Make the kernel kill this process with its parent, and become the command (Linux).

    The signal fires when the *thread* that started us ends: the server manager starts us from the thread that stays
    with the server.
    """
    import ctypes

    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:
        sys.exit(1)  # it died before the kernel knew
    _plain_signals()
    os.execvp(command[0], command)  # noqa: S606 - there is no shell to want


def _plain_signals() -> None:
    """Undo what survives exec: signals that Python ignores, and those that the application's thread blocked."""
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def watch(parent: int, command: list[str]) -> int:
    """Run the command as a child until the parent process exits. Returns its exit status, or exits by its signal."""
    _plain_signals()
    child = subprocess.Popen(command)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda received, _frame: child.send_signal(received))
    while True:
        try:
            code = child.wait(_WATCH_S)
            break
        except subprocess.TimeoutExpired:
            if os.getppid() != parent:
                child.kill()
    if code < 0:
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    return code


def main(arguments: list[str]) -> int:
    """Arguments: ``PARENT_PID [--watch] COMMAND...``."""
    parent, command = int(arguments[0]), arguments[1:]
    watching = command[0] == "--watch"
    command = command[watching:]
    try:
        if sys.platform == "linux" and not watching:
            _become(parent, command)
        return watch(parent, command)
    except OSError as error:
        print(f"error: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
