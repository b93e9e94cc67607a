"""`python -I -S client.py SOCKET PYTHON SCRIPT`: what a shell runs in place of `PYTHON SCRIPT` (see the package's docstring).

Imports nothing of mtkv and little else: it starts in a hundredth of a second.
"""

import os
import signal
import socket
import sys
from contextlib import suppress

FORWARDED = [signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2]
OPEN_FILES = (0, 1, 2)


def ask(path: str, command: list[str]) -> int | None:
    """The wait status of the job that a server at `path` forked for this process; None where there is no such server, or it refused."""
    connection = socket.socket(socket.AF_UNIX)

    def forward(number: int, _frame: object) -> None:
        with suppress(OSError):  # the server is gone, and the job went with it
            connection.send(bytes([number]))

    variables = [b"%s=%s" % item for item in os.environb.items()]
    request = b"\0".join([os.getcwdb(), *map(os.fsencode, command), *variables])
    before = {}
    try:
        connection.connect(path)
        socket.send_fds(connection, [len(request).to_bytes(8, "big")], OPEN_FILES)
        connection.sendall(request)
        for number in FORWARDED:  # ignored ones too: the job may come to listen to what it was started to ignore
            before[number] = signal.signal(number, forward)
        if connection.recv(1) != b"f":  # forked
            raise ConnectionRefusedError
    except OSError:
        for number, handler in before.items():
            signal.signal(number, handler)
        return None
    status = b""
    with suppress(ConnectionResetError):
        while part := connection.recv(16):
            status += part
    if not status:
        print("mtkv: the process that this job was forked from is gone, and the job with it", file=sys.stderr)
    return int(status or 1 << 8)


def end_as(status: int) -> None:
    """End this process with a wait status: with the same exit code, or killed by the same signal."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
    sys.exit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    socket_path, *command = sys.argv[1:]
    # `python script.py` and nothing else: options, `-m` and `-c` are plain Python's.
    ended = ask(socket_path, command) if len(command) == 2 and command[1].endswith(".py") else None
    if ended is None:
        os.execv(command[0], command)
    end_as(ended)
