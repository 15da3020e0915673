"""Runs a plan through Snakemake, and shows how far it is."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table as Grid

from mmattn.inspection._console import PreflightError
from mmattn.reproduction import nodes, status
from mmattn.reproduction import table as tables
from mmattn.reproduction.job import FRONT
from mmattn.reproduction.plan import Plan, Run

MEMORY = 16_000  # MB of a process, asked of Slurm
SNAKEFILE = Path(__file__).with_name("Snakefile")


def check_installed(slurm: bool = False) -> None:
    """Raises PreflightError where the extra is not installed."""
    needed = ["snakemake", *(["snakemake_executor_plugin_slurm"] if slurm else [])]
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if missing:
        old = sys.version_info < (3, 11)
        raise PreflightError(
            f"the suite needs {' and '.join(missing)}, which "
            + (
                f"needs Python 3.11 or later; this is {sys.version_info[0]}.{sys.version_info[1]}"
                if old
                else "is not installed: pip install 'mmattn[reproduce]', in a checkout "
                "-e '.[reproduce]'"
            )
        )


@contextlib.contextmanager
def alone(folder: Path):
    """Holds a table's folder.

    Raises:
        PreflightError: Another process runs this table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise PreflightError(
            f"another process runs the table in {folder}: wait for it, look at it with "
            "'reproduce.py status', or give another --out"
        ) from None
    try:
        yield
    finally:
        lock.release()


def prepare(table: tables.Table) -> None:
    """Makes the data of a table that brings a script for it."""
    if table.prepare:
        script, *arguments = table.prepare
        done = subprocess.run([sys.executable, str(tables.root() / script), *arguments])
        if done.returncode:
            raise PreflightError(f"the data could not be made by {' '.join(table.prepare)}")


def execute(
    plan: Plan,
    *,
    at_once: int = 1,
    retries: int = 2,
    slurm: Mapping[str, str] | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Does what is left of a plan's targets, and writes the report.

    Args:
        plan: The plan, written.
        at_once: Runs at a time where there is no GPU, or on Slurm.
        retries: More attempts of a run that died; each goes on from its last checkpoint.
        slurm: Partition, account and such for Slurm; None: on this machine.
        say: Is told what happens where the console is no terminal.

    Raises:
        PreflightError: Some runs failed; each is named with its reason.
    """
    # of an earlier call: what is tried again has not failed yet
    for run in plan.chosen:
        (run.folder / "failed.json").unlink(missing_ok=True)
    command = snakemake_command(plan, at_once, retries, slurm)
    log = plan.folder / "snakemake.log"
    with open(log, "ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=functools.partial(nodes.die_with_parent, signal.SIGINT),
            env=_environment(slurm is not None),
        )  # fmt: skip
        try:
            _watch(plan, process, say)
        except BaseException:
            _stop(process)
            raise
        finally:
            if plan.machine.nodes > 1:
                nodes.finish(plan.folder)
    left = [run for run in plan.chosen if not run.result.exists()]
    if process.returncode or left:
        reasons = [f"  {run.name}: {status.of(run).text}" for run in left]
        raise PreflightError(
            f"{len(left)} of {len(plan.chosen)} runs are not done:\n"
            + "\n".join(reasons)
            + f"\nSnakemake's log: {log}. Start again to go on; "
            "'reproduce.py report' writes what there is"
            if left
            else f"Snakemake ended with status {process.returncode}: see {log}"
        )


def snakemake_command(
    plan: Plan, at_once: int, retries: int, slurm: Mapping[str, str] | None
) -> list[str]:
    """The command line of Snakemake for a plan."""
    machine = plan.machine
    slots = len(machine.devices) * machine.share
    threads = max(machine.threads * run.processes for run in plan.runs)
    # Snakemake only counts GPUs; devices.claim hands them out
    if slurm is not None:
        # 'gpu' is the executor's name; threads are of a process, and each has one GPU
        slurm = {**slurm, "nodes": slurm.get("nodes", 1)}
        slurm.setdefault("cpus_per_gpu", machine.threads)
        # Snakemake would ask for 1 GB
        most = max(run.processes for run in plan.runs)
        slurm.setdefault("mem_mb", MEMORY * most)
        limits = ["--executor", "slurm", "--jobs", str(at_once), "--default-resources"]
        limits += [f"{key}={value}" for key, value in slurm.items()]
    else:
        cores = slots * machine.threads + 1 if slots else max(at_once, 1) * threads
        limits = ["--cores", str(cores), "--resources", f"gpu={slots}"]
    if machine.nodes > 1:
        # all machines do one run at a time
        limits = ["--cores", "1"]
    return [
        sys.executable, "-m", "snakemake",
        "--snakefile", str(SNAKEFILE),
        "--directory", str(plan.folder),
        *limits,
        "--config", f"plan={plan.path}",
        "--rerun-triggers", "mtime",
        # of all that is there by now, whatever was chosen
        "--forcerun", "report",
        "--retries", str(retries),
        "--keep-going", "--rerun-incomplete", "--nolock", "--nocolor",
        "--latency-wait", "60" if slurm is not None else "5",
        "--scheduler", "greedy",
    ]  # fmt: skip


def write_report(
    plan: Plan,
    replicates: int = 1000,
    images: Path | None = None,
    rows: Collection[str] | None = None,
) -> list[Path]:
    """The report of a plan's table, with what is done so far.

    Args:
        plan: The plan.
        replicates: Resamples of the images.
        images: Folder of the image files, to show those that differ most.
        rows: Only these rows; None: all.

    Raises:
        ValueError: Nothing of it is done, and there are results of other options, data or code.
    """
    if not any(plan.result_of(run) for run in plan.runs):
        others = [run.name for run in plan.runs if list(run.folder.parent.glob("*/result.json"))]
        if others:
            raise ValueError(
                f"nothing is done with these options, data and code; {len(others)} runs are with "
                f"others ({others[0]} ...): give the --cfg-options and --data-root that they were "
                "run with, or --any-code for results of another version"
            )
    from mmattn.reproduction import report

    table = tables.load(plan.path_of_table, plan.quick)
    chosen = {run.row: run for run in plan.runs if rows is None or run.row in rows}
    # with the options of the command line, which the table does not know
    own = {name: run.record["options"] for name, run in chosen.items()}
    shown = [
        dataclasses.replace(row, options=own[row.name]) for row in table.rows if row.name in own
    ]
    table = dataclasses.replace(table, rows=tuple(shown))
    of_row = {row.name: {} for row in table.rows}
    states = {row.name: {} for row in table.rows}
    for run in plan.runs:
        if run.row not in of_row:
            continue
        result = plan.result_of(run)
        if result is not None:
            of_row[run.row][run.seed] = result
        else:
            states[run.row][run.seed] = status.of(run).text
    return report.write_report(
        table, of_row, plan.folder / "report", states=states, replicates=replicates, images=images
    )


def _environment(submitted: bool = False) -> dict[str, str]:
    environment = nodes.environment_with_mmattn()
    # jobs that a cluster runs outlive the front
    environment.pop(FRONT, None)
    return environment | ({} if submitted else {FRONT: f"{socket.gethostname()}:{os.getpid()}"})


def _watch(plan: Plan, process: subprocess.Popen, say: Callable[[str], None]) -> None:
    console = Console()
    said: dict[str, str] = {}
    states = {run.name: status.of(run) for run in plan.chosen}
    begun = {
        name: state.text.removeprefix("interrupted at ")
        for name, state in states.items()
        if state.kind == "interrupted" and state.fraction < 1
    }
    with contextlib.ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, refresh_per_second=2))
        while True:
            ended = process.poll() is not None
            states = {run.name: status.of(run) for run in plan.chosen}
            if live:
                live.update(picture(plan.chosen, states))
            for name, state in () if live else states.items():
                # one line for a stage, not for every iteration, nor for the moment between two
                new = state.text if state.kind != "running" else state.text.split()[0]
                if state.kind == "running" and name in begun and new == "training":
                    new = f"training, on from {begun[name]}"
                if state.kind != "interrupted" and said.get(name, "waiting") != new:
                    done = sum(one.kind == "done" for one in states.values())
                    say(f"[{done}/{len(states)}] {name}: {new}")
                    said[name] = new
            if ended:
                return
            time.sleep(1)


def picture(runs: Sequence[Run], states: Mapping[str, status.State]) -> Group:
    """What a terminal shows while runs are done."""
    done = sum(state.kind == "done" for state in states.values())
    whole = sum(state.fraction for state in states.values()) / max(1, len(states))
    grid = Grid.grid(padding=(0, 2))
    for run in runs:
        state = states[run.name]
        if state.kind not in ("done", "waiting"):
            bar = ProgressBar(total=1, completed=state.fraction, width=20)
            grid.add_row(run.name, bar, state.text)
    bar = ProgressBar(total=1, completed=whole, width=40)
    top = Grid.grid(padding=(0, 2))
    top.add_row(f"{done} of {len(states)} runs done", bar, f"{whole:.0%} of the training")
    return Group(top, grid)


def _stop(process: subprocess.Popen) -> None:
    """Ends Snakemake and its jobs, as Ctrl-C does."""
    for sent, patience in ((signal.SIGINT, 60), (signal.SIGTERM, 20), (signal.SIGKILL, 10)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sent)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=patience)
            return
