"""`python -m mtkv.ops.warm_workers.server SOCKET MODULE…`: imports the modules, then forks a job for each client (see the package).

It has one thread: only such a process is forked safely, and with a second it refuses. It ends when its standard input does, that is with
the process that started it, and when its last job has.
"""

import atexit
import ctypes
import gc
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import threading
import types
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

FILES = 3  # standard input, output and error
# May differ between the server and a job: where the job's shell stands, and folders that are looked up when they are needed.
OWN = {b"PWD", b"OLDPWD", b"SHLVL", b"_", b"TMPDIR", b"TMP", b"TEMP", b"TEMPDIR", b"JE_ARROW_MALLOC_CONF"}
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)


class Job(NamedTuple):
    """What a client asks for; `files` are its standard input, output and error, open in this process."""

    folder: str
    script: str
    variables: dict[bytes, bytes]
    files: list[int]


class Server:
    """Forks jobs, hands signals on to them, and tells their clients how they ended."""

    def __init__(self, path: str, variables: dict[bytes, bytes]) -> None:
        self.variables = variables
        self.jobs: dict[int, socket.socket] = {}
        self.parent = os.getpid()
        self.listening = socket.socket(socket.AF_UNIX)
        self.listening.bind(path)
        self.listening.listen(64)
        self.woken, self.wake = os.pipe()
        os.set_blocking(self.wake, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake, warn_on_full_buffer=False)
        self.events = selectors.DefaultSelector()
        self.events.register(self.listening, selectors.EVENT_READ, self._accept)
        self.events.register(self.woken, selectors.EVENT_READ, self._report)
        self.events.register(sys.stdin.fileno(), selectors.EVENT_READ, self._close)

    def serve(self) -> Job:
        """Returns only in the process of a job, with what it is to run."""
        while self.jobs or self.listening.fileno() >= 0:
            for key, _ in self.events.select():
                if not callable(key.data):
                    self._hand_on(key.data)
                elif (job := key.data()) is not None:
                    assert isinstance(job, Job)
                    return job
        os._exit(0)

    def _accept(self) -> Job | None:
        connection, _ = self.listening.accept()
        job = _request(connection, self.variables)
        if job is None:
            connection.close()
            return None
        pid = os.fork()
        if pid == 0:
            self._leave(connection)
            return job
        for file in job.files:
            os.close(file)
        self.jobs[pid] = connection
        self.events.register(connection, selectors.EVENT_READ, pid)
        with suppress(OSError):
            connection.sendall(b"f")
        return None

    def _report(self) -> None:
        """Jobs have ended."""
        os.read(self.woken, 1 << 10)
        for pid in list(self.jobs):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                connection = self.jobs.pop(pid)
                with suppress(OSError):
                    connection.sendall(b"%d" % status)
                self._forget(connection)

    def _hand_on(self, pid: int) -> None:
        """Pass a client's signals on to its job. A client that ended was killed: so is its job."""
        if pid not in self.jobs:
            return
        try:
            numbers = self.jobs[pid].recv(64)
        except OSError:
            numbers = b""
        for number in numbers or [signal.SIGKILL]:
            os.kill(pid, number)
        if not numbers:
            self._forget(self.jobs[pid])

    def _forget(self, connection: socket.socket) -> None:
        if connection.fileno() >= 0:
            self.events.unregister(connection)
            connection.close()

    def _close(self) -> None:
        """Standard input has ended: no more jobs. Who closed it may have been killed, and left the folder."""
        shutil.rmtree(Path(self.listening.getsockname()).parent, ignore_errors=True)
        self.events.unregister(sys.stdin.fileno())
        self._forget(self.listening)

    def _leave(self, connection: socket.socket) -> None:
        """In a job's process: undo what is the server's alone, and die with it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.events.close()
        for held in (self.listening, connection, *self.jobs.values()):
            held.close()
        for file in (self.woken, self.wake):
            os.close(file)
        ctypes.CDLL(None).prctl(DIE_WITH_PARENT, signal.SIGKILL)
        if os.getppid() != self.parent:
            os._exit(1)


def _request(connection: socket.socket, variables: dict[bytes, bytes]) -> Job | None:
    """What the client wants; None where a fork would not be what a plain process is, or the client is gone."""
    files: list[int] = []
    with suppress(OSError, ValueError):
        size, files, _, _ = socket.recv_fds(connection, 8, FILES)
        wanted = int.from_bytes(size, "big")
        request = connection.recv(wanted, socket.MSG_WAITALL)
        folder, python, script, *own = request.split(b"\0")
        job = Job(os.fsdecode(folder), os.fsdecode(script), dict(each.split(b"=", 1) for each in own), files)
        alike = os.fsdecode(python) == sys.executable and _fixed(job.variables) == _fixed(variables)
        if alike and len(request) == wanted and len(files) == FILES and len(os.listdir("/proc/self/task")) == 1:
            return job
    for file in files:
        os.close(file)
    return None


def _fixed(variables: dict[bytes, bytes]) -> dict[bytes, bytes]:
    """Those that libraries may have read while they were imported."""
    return {name: value for name, value in variables.items() if name not in OWN}


def become(job: Job, before: dict[bytes, bytes]) -> types.ModuleType:
    """Make this process what `python job.script` would be; returns its module `__main__`, still empty.

    `before`: the server's variables before it imported anything; libraries set some.
    """
    os.setpgid(0, 0)
    for number, file in enumerate(job.files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(job.folder)
    imported = {name: value for name, value in os.environb.items() if before.get(name) != value}
    os.environb.clear()
    os.environb.update(job.variables | imported)
    tempfile.tempdir = None
    if "numpy" in sys.modules:  # Python's own generator starts anew in a fork
        sys.modules["numpy"].random.seed()
    script = Path(job.script).absolute()
    sys.argv = [job.script]
    sys.path.insert(0, str(script.parent))
    module = types.ModuleType("__main__")
    module.__file__ = str(script)
    sys.modules["__main__"] = module
    return module


def run(module: types.ModuleType) -> None:
    """Run the script of `module` and end this process as Python would, but for taking apart what the server imported: a second of CPU."""
    code = 0
    try:
        exec(compile(Path(str(module.__file__)).read_bytes(), str(module.__file__), "exec"), module.__dict__)
    except SystemExit as ended:
        if not isinstance(ended.code, int | None):
            print(ended.code, file=sys.stderr)
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except Exception as error:
        shown = error.with_traceback(error.__traceback__ and error.__traceback__.tb_next)
        sys.excepthook(type(shown), shown, shown.__traceback__)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined] # as multiprocessing's forks do; waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(code & 0xFF)


def main(path: str, modules: list[str]) -> None:
    """Serve; in each job's process, run its script."""
    variables = dict(os.environb)
    for name in ("snakemake.logging", "snakemake.iocontainers", *modules):  # Snakemake's are in every script
        import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a job would copy the pages of all that was imported
    try:
        server = Server(path, variables)
    except OSError:  # the process that started this one has ended and removed the folder
        return
    run(become(server.serve(), variables))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
