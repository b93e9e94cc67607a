"""A private SLURM of two nodes with a fake GPU each: munge, slurmctld and two slurmd of Debian's packages, on loopback.

No systemd, cgroups or database; works as root or as an ordinary user. Memory and GPUs are scheduled though nothing enforces them.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

NODES = ("node0", "node1")
DAEMONS = ("munged", "slurmctld", *(f"slurmd-{node}" for node in NODES))
CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo", "sacct", "sacctmgr", "sshare")
SYSTEM_PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MailProg=/bin/true
# no systemd, no cgroups; more cores than the machine has
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SlurmdParameters=config_overrides
ReturnToService=0
# cores, memory and GPUs are all consumed
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=100
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0
# short waits, so that tests are quick
KillWait=5
CompleteWait=0
MinJobAge=3600
SlurmdTimeout=300
InactiveLimit=0
JobRequeue=1
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/jobcomp.log
{nodes}
PartitionName=gpu Nodes=ALL MaxTime=60 DefaultTime=10 State=UP
PartitionName=cpu Nodes=ALL MaxTime=30 DefaultTime=10 Default=YES State=UP
"""
NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 RealMemory=32000 Gres=gpu:1 State=UNKNOWN"


def missing() -> list[str]:
    """The programs of SLURM that this machine lacks."""
    return [
        name
        for name in ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol")
        if not shutil.which(name, path=SYSTEM_PATH)
    ]


def until(true: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first value of `true()` that is true, asked ten times a second. Raises TimeoutError."""
    end = time.monotonic() + seconds
    while not (value := true()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:.0f} s for {what}")
        time.sleep(0.1)
    return value


def free_ports(count: int) -> list[int]:
    """Ports on which nobody listens now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Cluster:
    """Daemons below `folder`; a context manager that starts and stops them."""

    def __init__(self, folder: Path) -> None:
        self.folder, host = folder, socket.gethostname().split(".")[0]
        for name in ("state", "bin", *(f"spool/{node}" for node in NODES)):
            (folder / name).mkdir(parents=True, mode=0o755)
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o600)
        port, *ports = free_ports(1 + len(NODES))
        nodes = [NODE.format(name=name, host=host, port=ports[i]) for i, name in enumerate(NODES)]
        text = CONFIG.format(host=host, user=getpass.getuser(), folder=folder, port=port, nodes="\n".join(nodes))
        (folder / "slurm.conf").write_text(text)
        (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # File= must be a device; any will do
        # The jobstep plugin drops SLURM_CONF before its inner srun: wrappers keep every client on this cluster.
        for client in filter(None, (shutil.which(name, path=SYSTEM_PATH) for name in CLIENTS)):
            wrapper = folder / "bin" / Path(client).name
            wrapper.write_text(f'#!/bin/sh\nSLURM_CONF={folder}/slurm.conf exec {client} "$@"\n')
            wrapper.chmod(0o755)
        self.environment = {"SLURM_CONF": f"{folder}/slurm.conf", "PATH": f"{folder}/bin:{SYSTEM_PATH}"}

    def __enter__(self) -> "Cluster":
        self.run(
            "munged",
            "--force",
            f"--socket={self.folder}/munge.sock",
            f"--key-file={self.folder}/munge.key",
            f"--pid-file={self.folder}/munged.pid",
            f"--log-file={self.folder}/munged.log",
            f"--seed-file={self.folder}/munge.seed",
            "--num-threads=2",
        )
        try:
            self.start_controller()
            for node in NODES:
                self.run("slurmd", "-N", node)
            until(lambda: self.nodes() == dict.fromkeys(NODES, "idle"), 30, "the nodes to be idle")
        except (TimeoutError, subprocess.CalledProcessError):
            self.__exit__()
            logs = [path.read_text() for path in sorted(self.folder.glob("slurm*.log"))]
            raise RuntimeError("SLURM did not come up:\n" + "\n".join(logs)) from None
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run("scancel", f"--user={getpass.getuser()}", check=False)
        finally:
            for name in reversed(DAEMONS):
                self.stop(name)
            self._end_leftovers()

    def _end_leftovers(self) -> None:
        """End what jobs left running, which on a real cluster cgroups do: processes whose SLURM_CONF is this cluster's."""
        mark = f"SLURM_CONF={self.folder}/slurm.conf".encode()
        for environment in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if mark in environment.read_bytes().split(b"\0"):
                    os.kill(int(environment.parent.name), 9)

    def run(self, *command: str, check: bool = True) -> str:
        environment = os.environ | self.environment
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=20, check=False, stdin=subprocess.DEVNULL
        )
        if check and done.returncode:
            raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
        return done.stdout

    def start_controller(self) -> None:
        """Start slurmctld, with the state that an earlier one left."""
        self.run("slurmctld", "-f", f"{self.folder}/slurm.conf")

    def pid(self, name: str) -> int | None:
        """Our daemon's process, if it lives. Pids are used again: the process must name this folder."""
        try:
            pid = int((self.folder / f"{name}.pid").read_text())
            own = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return None
        return pid if str(self.folder).encode() in own and state != "Z" else None

    def stop(self, name: str) -> None:
        """Stop one daemon and wait until it is gone."""
        if pid := self.pid(name):
            os.kill(pid, 15)
            until(lambda: self.pid(name) is None, 20, f"{name} to stop")

    def scontrol(self, *arguments: str) -> str:
        """What `scontrol` prints."""
        return self.run("scontrol", *arguments)

    def nodes(self) -> dict[str, str]:
        """The state of each node in sinfo's words; empty while the controller does not answer."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", "--partition=cpu", check=False).splitlines()
        return dict(line.split() for line in lines)

    def jobs(self) -> list[dict[str, str]]:
        """Every job that SLURM remembers, oldest first, with the fields of `scontrol show job`."""
        text = self.run("scontrol", "--oneliner", "--details", "show", "job", check=False)
        jobs = [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in text.splitlines() if line.startswith("JobId=")]
        return sorted(jobs, key=lambda job: int(job["JobId"]))

    def jobs_of(self, rule: str, folder: Path | None = None) -> list[dict[str, str]]:
        """The jobs of one rule, or of one group, of the workflow in `folder`."""
        return [
            job
            for job in self.jobs()
            if re.match(rf"(rule|group)_{rule}", job.get("Comment", "")) and folder in (None, Path(job["WorkDir"]))
        ]

    def completions(self) -> Iterator[dict[str, str]]:
        """The lines of SLURM's log of ended jobs."""
        for line in (self.folder / "jobcomp.log").read_text().splitlines():
            yield dict(re.findall(r"(\S+?)=(\S*)", line))
