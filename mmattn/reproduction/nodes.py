"""How is a run started: in one process, in several, or on several machines at once?

On several machines the first one follows the plan and announces every start in a file that the
others see; they start the same command with their own rank, and torchrun joins them.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mmattn.evaluation.files import write_text
from mmattn.reproduction.plan import Machine, Plan, Run
from mmattn.reproduction.table import root

STALE = 120  # seconds after which an announcement that is not kept alive counts no more
GRACE = 20  # seconds in which a machine ends by itself what the first one has ended


@contextlib.contextmanager
def command(plan: Plan, run: Run, what: str, arguments: list[str]) -> Iterator[list[str]]:
    """The command of a run on this machine, announced to the others until the block ends."""
    tool, machine = str(plan.tools / f"{what}.py"), plan.machine
    if run.processes == 1:
        yield [sys.executable, tool, *arguments]
        return
    here = run.processes // machine.nodes
    # '--launcher' first: --cfg-options takes all that follows it
    work = [tool, arguments[0], "--launcher", "pytorch", *arguments[1:]]
    if machine.nodes == 1:
        meeting = ["--standalone", f"--nproc_per_node={here}"]
        yield [sys.executable, "-m", "torch.distributed.run", *meeting, *work]
        return
    host, _, port = machine.address.rpartition(":")
    meeting = [
        f"--nnodes={machine.nodes}",
        f"--nproc_per_node={here}",
        f"--master_addr={host}",
        f"--master_port={port}",
    ]
    announced = _announced(plan.folder)
    name = uuid.uuid4().hex
    # a machine that is late, or was not told of a retry, cannot join another run's processes
    meeting.append(f"--rdzv_id={name}")
    rest = ["-m", "torch.distributed.run", *meeting]
    start = {
        "id": name,
        "launch": rest,
        "work": work,
        "processes": here,
        "start": str(plan.start),
    }
    write_text(announced, json.dumps(start))
    try:
        yield [sys.executable, *rest, "--node_rank=0", *work]
    finally:
        write_text(announced, json.dumps({"id": start["id"]}))


def keep_alive(plan: Plan) -> None:
    """Says that what was announced still holds."""
    if plan.machine.nodes > 1:
        os.utime(_announced(plan.folder))


def finish(folder: Path) -> None:
    """Tells the other machines that nothing comes any more."""
    write_text(_announced(folder), json.dumps({"id": "", "finished": True}))


def follow(
    folder: Path, rank: int, machine: Machine, say: Callable[[str], None], patience: float = 600
) -> None:
    """Takes part in every start that the first machine announces, until it has finished.

    Args:
        folder: The table's folder, which all machines see.
        rank: Which machine this is, from 1.
        machine: Its devices.
        say: Is told what is started.
        patience: Seconds to wait for the first machine to begin.

    Raises:
        ValueError: Nothing was announced in time.
    """
    log = folder / f"node{rank}.log"
    folder.mkdir(parents=True, exist_ok=True)
    done, begun, begun_there = set(), time.time(), _now(log)
    while True:
        state = _state(folder, log)
        if state.get("finished") and (done or state["time"] >= begun_there):
            return
        begins = state.get("time", 0) >= begun_there or "work" in state
        if not done and not begins and time.time() - begun > patience:
            raise ValueError(
                f"the first machine has announced nothing in {_announced(folder)} for "
                f"{patience:.0f} s; all machines are expected to see the same --out folder"
            )
        if "work" not in state or state["id"] in done:
            time.sleep(0.5)
            continue
        done.add(state["id"])
        say(f"joining {' '.join(state['work'][:2])}")
        environment = environment_with_mmattn(OMP_NUM_THREADS=str(machine.threads))
        if machine.devices:
            if len(machine.devices) < state["processes"]:
                raise ValueError(
                    f"the first machine takes {state['processes']} GPUs of each; this one has "
                    f"{len(machine.devices)}: give all of them the same --gpus"
                )
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(machine.devices[: state["processes"]])
        with open(log, "ab") as output:
            # its failure is the first machine's too, which tries again
            process = subprocess.Popen(
                [sys.executable, *state["launch"], f"--node_rank={rank}", *state["work"]],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
                preexec_fn=die_with_parent, cwd=state["start"],
            )  # fmt: skip
        try:
            _join(process, state["id"], folder, log)
        finally:
            end(process)


def _join(process: subprocess.Popen, name: str, folder: Path, log: Path) -> None:
    """Waits for a process, but not long after its start was withdrawn.

    The first machine's part may have died, which this one may not notice for half an hour.
    """
    withdrawn = None
    while process.poll() is None:
        state = _state(folder, log)
        holds = state.get("id") == name and "work" in state
        withdrawn = None if holds else withdrawn or time.monotonic()
        if withdrawn and time.monotonic() - withdrawn > GRACE:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)


def _announced(folder: Path) -> Path:
    return folder / "nodes.json"


def _state(folder: Path, log: Path) -> dict:
    """What is announced, if the first machine still says so."""
    with contextlib.suppress(OSError, ValueError):
        changed = _announced(folder).stat().st_mtime
        state = json.loads(_announced(folder).read_text())
        if "work" not in state or _now(log) - changed < STALE:
            return {**state, "time": changed}
    return {}


def _now(log: Path) -> float:
    """The time of the machine that keeps the folder: those of others may differ."""
    log.touch()
    return log.stat().st_mtime


def environment_with_mmattn(**more: str) -> dict[str, str]:
    """The environment of a process that imports this mmattn: beside configs/ in a checkout."""
    path = [str(root()), os.environ.get("PYTHONPATH")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, path)), **more}


def die_with_parent(sent: int = signal.SIGTERM) -> None:
    """Linux: who is killed does not leave a training behind, holding a GPU."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, sent)


def end(process: subprocess.Popen) -> None:
    """Ends a process that runs."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
