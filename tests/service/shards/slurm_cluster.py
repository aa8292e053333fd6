"""A SLURM of two nodes on this machine for tests: slurmctld, and slurmd as n1 and as n2.

It needs the Debian packages slurmctld, slurmd and slurm-client, and neither root nor munge: all
runs as the user, without authentication, on ports of the loopback address.
"""

import getpass
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NODES = ("n1", "n2")
_COMMANDS = ("slurmctld", "slurmd", "slurmstepd", "sbatch", "scontrol", "squeue")
_CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
PluginDir={plugins}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_interval=1
ReturnToService=2
MinJobAge=3600
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 State=UNKNOWN
PartitionName=all Nodes=n1,n2 Default=YES MaxTime=INFINITE State=UP
"""


def programs() -> dict[str, str]:
    """Return where the programs are; skip the test if they are not all here."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    found = {}
    for name in _COMMANDS:
        # Debian's daemons have a name of their own, and an alternative with the plain one.
        place = shutil.which(name, path=path) or shutil.which(f"{name}-wlm", path=path)
        if place is None:
            pytest.skip(f"{name} is not here: apt-get install slurmctld slurmd slurm-client")
        found[name] = place
    return found


def _ports() -> list[int]:
    sockets = [socket.socket() for _ in range(3)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    numbers = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return numbers


@contextmanager
def running(folder: Path) -> Iterator[dict[str, str]]:
    """Start the cluster; yields the environment in which its commands know it."""
    here = programs()
    (plugins,) = Path(here["slurmctld"]).resolve().parents[1].glob("lib/*/slurm-wlm")
    folder.mkdir()
    (folder / "state").mkdir()
    configuration = folder / "slurm.conf"
    configuration.write_text(
        _CONFIGURATION.format(
            host=socket.gethostname(),
            user=getpass.getuser(),
            ports=_ports(),
            plugins=plugins,
            folder=folder,
        )
    )
    commands = os.pathsep.join({str(Path(here[name]).parent) for name in ("sbatch", "squeue")})
    environment = {
        **os.environ,
        "SLURM_CONF": str(configuration),
        "PATH": f"{commands}{os.pathsep}{os.environ['PATH']}",
    }
    lines = [[here["slurmctld"], "-D", "-c"]]
    lines += [[here["slurmd"], "-D", "-N", node, "-d", here["slurmstepd"]] for node in NODES]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    daemons = [subprocess.Popen(line, env=environment, **quiet) for line in lines]  # type: ignore[call-overload]
    try:
        _wait_for_nodes(environment, folder, daemons)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(30)


def _wait_for_nodes(
    environment: dict[str, str], folder: Path, daemons: list["subprocess.Popen[bytes]"]
) -> None:
    end = time.monotonic() + 90
    while asked(environment, "scontrol", "show", "node").count("State=IDLE") < len(NODES):
        dead = [daemon.args for daemon in daemons if daemon.poll() is not None]
        if dead or time.monotonic() > end:
            logs = "\n".join(path.read_text()[-2000:] for path in folder.glob("*.log"))
            raise RuntimeError(f"the cluster does not start ({dead}):\n{logs}")
        time.sleep(0.5)


def asked(environment: dict[str, str], *words: str) -> str:
    """Return what a command prints."""
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    return done.stdout


def tasks(environment: dict[str, str], job: str) -> list[dict[str, str]]:
    """Return what SLURM knows of the tasks of an array: all fields, by name."""
    shown = asked(environment, "scontrol", "--oneliner", "show", "job", job)
    return [dict(re.findall(r"(\w+(?:/\w+)?)=(\S*)", line)) for line in shown.splitlines()]
