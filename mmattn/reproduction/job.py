"""What a rule of the Snakefile does: trains, tests or evaluates one run, or writes the report.

python -m mmattn.reproduction.job train PLAN.json FOLDER
"""

from __future__ import annotations

import ast
import contextlib
import datetime
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mmattn.evaluation.files import write_text
from mmattn.reproduction import devices, fingerprint, nodes
from mmattn.reproduction import plan as plans
from mmattn.reproduction.plan import Plan, Run

HEARTBEAT = 5  # seconds between signs of life, in running.json
FRONT = "MMATTN_REPRODUCE_FRONT"  # host:pid of the process that shows the progress
TAIL = 20000  # bytes of a log in which the reason of a failure is looked for


class FailedError(Exception):
    """A reason in one sentence."""


class PermanentError(FailedError):
    """A reason that another attempt would meet again."""


class Ended(SystemExit):
    """Snakemake, or the cluster, has ended the job."""


def main(argv: list[str]) -> None:
    """Does one job of a plan."""
    what, plan = argv[0], plans.read(argv[1])
    if what == "report":
        from mmattn.reproduction.workflow import write_report

        write_report(plan)
        return
    run = next((run for run in plan.runs if str(run.folder) == argv[2]), None)
    if run is None:
        raise SystemExit(
            f"{argv[1]} has no run {argv[2]} any more: the table was started again with other "
            "settings or other code"
        )
    with _alone(run), _failure_noted(run, what):
        done = run.folder / {"evaluate": "result.json"}.get(what, f"{what}.json")
        # another process may have done it while this one waited
        if not done.exists():
            if what != "evaluate" and fingerprint.code() != run.code:
                raise PermanentError(
                    "mmattn's code, or a package below it, is not what it was when the table was "
                    "started; start it again"
                )
            {"train": train, "test": test, "evaluate": evaluate}[what](plan, run)


def train(plan: Plan, run: Run) -> None:
    """Trains, or goes on where an earlier attempt ended, and writes train.json."""
    begun = run.folder / "processes.json"
    # what counts iterations in its checkpoints counts those of so many processes
    if (run.folder / "work" / "last_checkpoint").exists() and begun.exists():
        before = json.loads(begun.read_text())
        if before != run.processes:
            raise PermanentError(
                f"it was begun with {before} processes, and this would be {run.processes}: go on "
                f"with as many GPUs, or remove {run.folder / 'work'} to begin again"
            )
    write_text(begun, json.dumps(run.processes))
    arguments = [str(run.config), "--work-dir", str(run.folder / "work"), "--resume"]
    seconds = _execute(plan, run, "train", arguments)
    checkpoint = Path((run.folder / "work" / "last_checkpoint").read_text().strip())
    content = {"checkpoint": str(checkpoint), **seconds}
    write_text(run.folder / "train.json", json.dumps(content, indent=1))


def test(plan: Plan, run: Run) -> None:
    """Writes the detections on the test images, and test.json."""
    trained = json.loads((run.folder / "train.json").read_text())
    prefix = run.folder / "results"
    arguments = [str(run.config), trained["checkpoint"], "--work-dir", str(run.folder / "test")]
    arguments += ["--cfg-options", f"test_evaluator.outfile_prefix={prefix}"]
    _execute(plan, run, "test", arguments)
    found = {
        kind: f"results.{kind}.json"
        for kind in ("bbox", "segm")
        if (run.folder / f"results.{kind}.json").is_file()
    }
    if not found:
        raise FailedError(f"it ended without writing {prefix}.bbox.json")
    write_text(run.folder / "test.json", json.dumps({"predictions": found}, indent=1))


def evaluate(plan: Plan, run: Run) -> None:
    """Writes result.json: the figures, and everything that they hold for."""
    from mmattn.evaluation import evaluate as figures_of
    from mmattn.evaluation.result import FIGURES

    trained = json.loads((run.folder / "train.json").read_text())
    predictions = json.loads((run.folder / "test.json").read_text())["predictions"]
    data = run.record["data"]
    if fingerprint.of_file(data["annotations"]) != data["val_sha256"]:
        raise PermanentError(
            f"{data['annotations']} has changed since the run was planned; start the table again"
        )
    figures = {}
    for kind, name in predictions.items():
        found = figures_of(data["annotations"], run.folder / name, iou_type=kind)
        figures[kind] = {
            size: {x: None if math.isnan(of[x]) else of[x] for x in FIGURES}
            for size, of in found.rows()
        }
    content = {
        **run.record,
        "hardware": {
            "device": trained["device"],
            # of the training: what is left may be done with other GPUs
            "processes": json.loads((run.folder / "processes.json").read_text()),
            "images_per_update": run.images_per_update,
        },
        **{key: trained[key] for key in ("started", "finished", "train_seconds", "attempts")},
        "checkpoint": trained["checkpoint"],
        "predictions": predictions,
        "figures": figures,
        "cost": _cost(plan, run),
    }
    write_text(run.result, json.dumps(content, indent=1))


def cost_file(plan: Plan, run: Run) -> Path:
    """Where the cost of a run's model is kept, for all runs that have the same one."""
    parts = ast.parse(run.config.read_text()).body
    # what the model computes, and the image that it is given
    counted = [part for part in parts if part.targets[0].id in ("model", "test_dataloader")]
    key = fingerprint.of_text(run.code, *map(ast.unparse, counted))[:16]
    return plan.folder / "costs" / f"{key}.json"


def _cost(plan: Plan, run: Run) -> dict[str, Any]:
    """Parameters and FLOPs of the detector, counted once for all seeds of a row."""
    cache = cost_file(plan, run)
    if cache.exists():
        return json.loads(cache.read_text())
    from mmattn.inspection import config_file
    from mmattn.inspection.cost_report import count

    config = config_file.load(str(run.config))
    height, width = shape = _shape(config)
    cost = {**count(config, shape), "shape": [height, width]}
    write_text(cache, json.dumps(cost))
    return cost


def _shape(config: Any) -> tuple[int, int]:
    """Height and width of a test image in landscape format, as the config resizes it."""
    from mmattn.inspection import config_file

    for part in config_file.maps(config.test_dataloader.dataset.get("pipeline", ())):
        if part.get("type") == "Resize" and isinstance(part.get("scale"), (list, tuple)):
            return min(part["scale"]), max(part["scale"])
    return 800, 1333


@contextlib.contextmanager
def _alone(run: Run) -> Iterator[None]:
    """Holds the run's folder, after whoever else works on it."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run.folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{run.name}: another process works on it; waiting", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _failure_noted(run: Run, what: str) -> Iterator[None]:
    """Writes failed.json, in which status finds the reason.

    The front removes it when it starts: what is found here is of an earlier attempt of this start.
    """
    note = run.folder / "failed.json"
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(note.read_text())
        if before.get("permanent") and before["what"] == what:
            raise SystemExit(f"{run.name}: {what} is not tried again: {before['reason']}")
    note.unlink(missing_ok=True)
    try:
        yield
    except (KeyboardInterrupt, Ended):
        raise  # interrupted, not failed
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if not isinstance(error, FailedError):
            reason = f"{type(error).__name__}: {reason}"
        permanent = isinstance(error, PermanentError)
        content = {"what": what, "reason": reason, "permanent": permanent}
        with contextlib.suppress(OSError):  # a full disk may be the reason
            write_text(note, json.dumps(content))
        if isinstance(error, FailedError):
            raise SystemExit(f"{run.name}: {what} failed: {reason}") from None
        raise


def _execute(plan: Plan, run: Run, what: str, arguments: list[str]) -> dict[str, Any]:
    """Runs tools/train.py or test.py on claimed devices; returns how long all attempts took.

    Raises:
        FailedError: It ended with an error; the last line of its log is in the message.
    """
    attempts = run.folder / f"{what}_attempts.json"
    before = json.loads(attempts.read_text()) if attempts.exists() else []
    log, sign = run.folder / f"{what}.log", run.folder / "running.json"
    machine = plan.machine
    here = run.processes // machine.nodes
    environment = nodes.environment_with_mmattn(OMP_NUM_THREADS=str(machine.threads))
    with contextlib.ExitStack() as stack:
        taken = _devices(here, machine, stack) if machine.devices else []
        if taken:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        device = fingerprint.hardware(taken, machine.threads)
        attempt = {"started": _now(), "seconds": 0.0, "device": device}
        start = time.monotonic()

        def note(**more: Any) -> None:
            attempt.update(seconds=round(time.monotonic() - start, 1), last=_now(), **more)
            write_text(attempts, json.dumps([*before, attempt], indent=1))

        command = stack.enter_context(nodes.command(plan, run, what, arguments))
        with open(log, "ab") as output:
            output.write(f"\n== {attempt['started']} {' '.join(command)}\n".encode())
            output.flush()
            begin = output.tell()
            process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, env=environment,
                preexec_fn=nodes.die_with_parent, cwd=plan.start,
            )  # fmt: skip
            stack.callback(nodes.end, process)
            stack.callback(lambda: sign.unlink(missing_ok=True))
            while process.poll() is None:
                # a disk that is full, or away for a moment, ends no training that goes on
                with contextlib.suppress(OSError):
                    note()
                    state = {"what": what, "host": socket.gethostname(), "pid": os.getpid()}
                    write_text(sign, json.dumps(state))
                    nodes.keep_alive(plan)
                _wait(process)
        note(status=process.returncode)
    if process.returncode:
        kind, reason = _reason(log, process.returncode, begin)
        raise kind(f"{reason}; log: {log}")
    every = [*before, attempt]
    return {
        "started": every[0]["started"],
        "finished": _now(),
        "train_seconds": round(sum(one["seconds"] for one in every), 1),
        "attempts": len(every),
        "device": attempt["device"],
    }


def _wait(process: subprocess.Popen) -> None:
    """Until the next sign of life is due; ends the job where the front that began it is gone."""
    for _ in range(HEARTBEAT):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout=1)
            return
        host, _, front = os.environ.get(FRONT, "").rpartition(":")
        if host == socket.gethostname():
            try:
                os.kill(int(front), 0)
            except (ProcessLookupError, PermissionError):  # or its number is another user's now
                raise Ended(143) from None


def _devices(number: int, machine: plans.Machine, stack: contextlib.ExitStack) -> list[str]:
    if "SLURM_JOB_ID" in os.environ and FRONT not in os.environ:
        # submitted: the cluster has chosen, and all that the job sees is its own. A table that is
        # run inside of one allocation shares out its GPUs itself
        return devices.visible()
    return stack.enter_context(devices.claim(number, list(machine.devices), machine.share))


def _reason(log: Path, status: int, begin: int = 0) -> tuple[type[FailedError], str]:
    """The last words of an attempt, from where they begin in its log, or the signal."""
    if status < 0:
        with contextlib.suppress(ValueError):
            return FailedError, f"ended by {signal.Signals(-status).name}"
    with open(log, "rb") as file:
        file.seek(max(begin, log.stat().st_size - TAIL))
        text = file.read().decode(errors="replace")
    lines = [re.sub(r"^\[rank\d+\]:", "", line).strip() for line in text.splitlines()]
    said = [line for line in lines if line.startswith(("train.py:", "test.py:"))]
    # torchrun reports its children's ends at length, after their own words
    wrong = [
        line
        for line in lines
        if "Error" in line.partition(" ")[0] and not line.startswith("torch.distributed.elastic")
    ]
    last = (said or wrong or [line for line in lines if line] or ["no output"])[-1]
    # the tools say in a sentence what the user has to put right
    permanent = bool(said) and status in (1, 2) and "interrupted" not in last
    return PermanentError if permanent else FailedError, f"{last} (exit status {status})"


def _end_here(*_: Any) -> None:
    raise Ended(143)


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    # Snakemake ends its jobs by SIGTERM: what is claimed is given back on the way out
    signal.signal(signal.SIGTERM, _end_here)
    main(sys.argv[1:])
