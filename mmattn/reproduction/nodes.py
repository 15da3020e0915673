"""How is a run started: in one process, in several, or on several machines at once?

On several machines the first one follows the plan and announces every start in a file that the
others see; they start the same command with their own rank, and torchrun joins them.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from mmattn.evaluation.files import write_text
from mmattn.reproduction.plan import Machine, Plan, Run
from mmattn.reproduction.table import root


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
    announced = plan.folder / "nodes.json"
    rest = ["-m", "torch.distributed.run", *meeting]
    start = {
        "id": uuid.uuid4().hex,
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


def finish(folder: Path) -> None:
    """Tells the other machines that nothing comes any more."""
    write_text(folder / "nodes.json", json.dumps({"id": "", "finished": True}))


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
    announced, done, begun = folder / "nodes.json", set(), time.time()
    while True:
        state: dict = {}
        with contextlib.suppress(OSError, ValueError):
            # what an earlier call has left there is older than this one
            if announced.stat().st_mtime >= begun - 60 or done:
                state = json.loads(announced.read_text())
        if state.get("finished") and (done or announced.stat().st_mtime >= begun):
            return
        if not done and not state and time.time() - begun > patience:
            raise ValueError(
                f"the first machine has announced nothing in {announced} for {patience:.0f} s; "
                "all machines are expected to see the same --out folder"
            )
        if "work" not in state or state["id"] in done:
            time.sleep(0.5)
            continue
        done.add(state["id"])
        say(f"joining {' '.join(state['work'][:2])}")
        environment = os.environ | {"OMP_NUM_THREADS": str(machine.threads)}
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(root()), environment.get("PYTHONPATH")])
        )
        if machine.devices:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(machine.devices[: state["processes"]])
        log = folder / f"node{rank}.log"
        with open(log, "ab") as output:
            # its failure is the first machine's too, which tries again
            subprocess.run(
                [sys.executable, *state["launch"], f"--node_rank={rank}", *state["work"]],
                stdout=output, stderr=subprocess.STDOUT, env=environment,
                cwd=state["start"],
            )  # fmt: skip
