"""A job that is forked from the warm server behaves as the same script in a Python of its own: that is run beside it each time."""

import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from mtkv.ops import warm_workers
from mtkv.ops.warm_workers import client

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="servers are started on Linux alone")

# The server imports this: what it costs must not be in a job's figures.
IMPORTED = "import time\nblock = bytearray(300_000_000)\ndel block\nwhile time.process_time() < 1: pass\n"
ONE_THREAD = {f"{name}_THREADS": "1" for name in warm_workers.THREADS}
WAITING = """
import os, signal, sys, time
from mtkv.checkpointing.preemption import Preemption
with Preemption() as preemption:
    print(os.getpid(), flush=True)
    while not preemption.asked:
        time.sleep(0.01)
    preemption.leave("nothing")
"""
ENDINGS = {
    "well": "print('done')",
    "code": "import sys; sys.exit(3)",
    "words": "import sys; sys.exit('no such file')",
    "at once": "import os; os._exit(7)",
    "saved": "from mtkv.checkpointing.preemption import SavedExit\nraise SavedExit",
    "error": "def stage():\n    raise ValueError('no rows')\n\nstage()",
    "crash": "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
    "out of memory": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "at exit": "import atexit, threading\natexit.register(print, 'last')\nthreading.Timer(0.2, print, ['thread']).start()",
    "state": "import os, random, sys\nprint(__name__, __file__, sys.argv, sys.path[0], os.getcwd(), os.environ['SOME'], sys.stdin.read())\n"
    "import __main__, tempfile\nprint(__main__.sys is sys, tempfile.gettempdir(), os.environ.get('JE_ARROW_MALLOC_CONF'))",
}


def eventually(true):
    for _ in range(3000):
        if true():
            return
        time.sleep(0.05)
    raise AssertionError("waited for 150 seconds")


def is_alive(pid):
    """Whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def served(folder):
    """`prefix`: what a shell begins with to have its jobs forked from a server that has imported `costly`; its process and socket."""
    (folder / "costly.py").write_text(IMPORTED)
    path = f"{folder}{os.pathsep}{Path(warm_workers.__file__).parents[3]}"
    # A shell starts what it runs in the background with SIGINT ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("PYTEST_CURRENT_TEST")
        for name, value in {"PYTHONPATH": path, "SOME": "thing", **ONE_THREAD}.items():
            patch.setenv(name, value)
        prefix = warm_workers.serve(["costly", "mtkv.checkpointing.preemption"]).format()
        process, place = warm_workers._running.pop()
        eventually((place / "socket").exists)
        yield SimpleNamespace(prefix=prefix, process=process, socket=place / "socket", folder=folder)
        patch.setattr(warm_workers, "_running", [(process, place)])
        warm_workers.stop()
        assert process.wait(timeout=300) is not None
        assert not place.exists()
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("jobs")) as found:
        yield found


@pytest.fixture
def own_server(tmp_path):
    """For a test that ends it."""
    with served(tmp_path) as found:
        yield found


def variables(**more):
    """The server's environment; pytest notes in its own what it is at."""
    return {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"} | more


def script(server, text):
    path = server.folder / "job.py"
    path.write_text(text)
    return path


def in_shell(server, text, warm, **more):
    """A script run as Snakemake runs it."""
    command = f"{server.prefix if warm else warm_workers.SHELL}{sys.executable} {script(server, text)}"
    environment = variables(TMPDIR=str(server.folder)) | more
    return subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, input="read", timeout=300
    )


def started(server, text, warm):
    """A script in a process that can be sent signals, once it has said something: its pid."""
    plain = [sys.executable, str(script(server, text))]
    command = [sys.executable, "-I", "-S", client.__file__, str(server.socket), *plain] if warm else plain
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=variables())
    return process, int(process.stdout.readline())


def test_job_is_forked_and_its_figures_are_its_own(server):
    figures = "import resource, sys, time\nprint('costly' in sys.modules, time.process_time(), resource.getrusage(0).ru_maxrss)"
    warm = in_shell(server, figures, warm=True).stdout.split()
    assert warm[0] == "True"
    assert float(warm[1]) < 0.5
    assert int(warm[2]) < 200_000
    assert in_shell(server, figures, warm=False).stdout.startswith("False")


@pytest.mark.parametrize("ending", ENDINGS)
def test_ends_as_a_plain_process_does(server, ending):
    plain, warm = (in_shell(server, ENDINGS[ending], warm) for warm in (False, True))
    # The shell becomes a plain process, and stays beside a client: it says 128 + n, and in words, where signal n killed that.
    code = plain.returncode if plain.returncode >= 0 else 128 - plain.returncode
    assert (warm.returncode, warm.stdout) == (code, plain.stdout)
    assert (warm.stderr == plain.stderr) is (plain.returncode >= 0)
    assert in_shell(server, "import sys; print('costly' in sys.modules)", warm=True).stdout == "True\n"


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGUSR1, 75), (signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_signals_reach_the_job(server, warm, number, code):
    process, pid = started(server, WAITING, warm)
    assert (process.pid == pid) is not warm
    process.send_signal(number)
    said = process.communicate(timeout=300)[1]
    assert process.returncode == code
    assert ("nothing saved; exit code 75" in said) is (number == signal.SIGUSR1)
    assert said.count("KeyboardInterrupt") == (number == signal.SIGINT)
    eventually(lambda: not is_alive(pid))


def test_a_killed_client_takes_its_job_with_it_and_no_other(server):
    (killed, gone), (other, stays) = started(server, WAITING, True), started(server, WAITING, True)
    killed.kill()
    eventually(lambda: not is_alive(gone))
    assert is_alive(stays)
    other.send_signal(signal.SIGUSR1)
    assert other.wait(timeout=300) == 75


def test_a_killed_server_takes_its_jobs_with_it_and_later_ones_are_plain(own_server):
    process, pid = started(own_server, WAITING, True)
    own_server.process.kill()
    assert "is gone" in process.communicate(timeout=300)[1]
    assert process.returncode == 1
    eventually(lambda: not is_alive(pid))
    assert in_shell(own_server, "import sys; print('costly' in sys.modules)", warm=True).stdout == "False\n"


def test_server_that_is_told_to_stop_waits_for_its_jobs(own_server):
    process, pid = started(own_server, WAITING, True)
    own_server.process.stdin.close()
    time.sleep(0.3)
    assert is_alive(pid)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=300) == 75
    assert own_server.process.wait(timeout=300) == 0
    assert not own_server.socket.parent.exists()


@pytest.mark.parametrize("more", [{"OMP_NUM_THREADS": "2"}, {"SOME": "other"}, {"NEW": ""}])
def test_a_job_with_another_environment_is_plain(server, more):
    job = in_shell(server, "import os, sys; print('costly' in sys.modules, os.environ['SOME'])", True, **more)
    assert job.stdout == f"False {more.get('SOME', 'thing')}\n"


def test_other_commands_of_a_shell_are_left_alone(server):
    command = f"{server.prefix} {sys.executable} -c 'import sys; print(sys.argv)' a b; false; echo not reached"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "['-c', 'a', 'b']\n")


def test_limits_of_the_process_are_the_servers(server):
    text = "import resource; print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    assert in_shell(server, text, warm=True).stdout == f"{resource.getrlimit(resource.RLIMIT_NOFILE)}\n"


def test_never_for_slurm_nor_inside_it(monkeypatch):
    monkeypatch.setattr(warm_workers, "DEVICES", ())
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    here = SimpleNamespace(is_main_process=True, local_exec=True)
    assert warm_workers.possible(here)
    assert not warm_workers.possible(SimpleNamespace(is_main_process=True, local_exec=False))
    assert not warm_workers.possible(SimpleNamespace(is_main_process=False, local_exec=True))
    monkeypatch.setenv("MTKV_WARM", "0")
    assert not warm_workers.possible(here)
    monkeypatch.delenv("MTKV_WARM")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert not warm_workers.possible(here)


SNAKEFILE = """
import time
from mtkv.ops import warm_workers
onstart:
    shell.prefix(warm_workers.serve(["costly"]))
    while not (warm_workers._running[0][1] / "socket").exists():
        time.sleep(0.02)
rule all:
    input: "good", "bad", "plain"
rule job:
    output: "{name,good|bad}"
    script: "both.py"
rule other:
    output: "plain"
    shell: "echo {{}} > {output}"
"""
BOTH = """
import sys
assert "costly" in sys.modules
if snakemake.wildcards.name == "bad":
    raise ValueError("no rows")
open(snakemake.output[0], "w").close()
"""


def test_snakemake_sees_a_failed_job_and_makes_the_others(server):
    (server.folder / "Snakefile").write_text(SNAKEFILE)
    (server.folder / "both.py").write_text(BOTH)
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going"]
    done = subprocess.run(command, cwd=server.folder, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "ValueError: no rows" in done.stderr
    assert (server.folder / "good").exists()
    assert not (server.folder / "bad").exists()
    assert (server.folder / "plain").read_text() == "{}\n"
