"""Trains, tests and compares the rows of a table, and writes the paper's table with our column.

A table names its rows (configs, seeds, baselines, what was published); mmattn comes with some
(list), and TABLE.yml can be one of your own. What is done is not done again, what was interrupted
goes on, and another config, seed, data set or code never shares a result.

    python tools/reproduce.py list [TABLE]
    python tools/reproduce.py run demo --quick
    python tools/reproduce.py status sge --data-root /data/coco
    python tools/reproduce.py report sge --data-root /data/coco
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import mmattn  # noqa: F401  before mmdet, for an mmcv without compiled operators
from mmattn.inspection import preflight
from mmattn.inspection.arguments import ConfigOptions


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    listing = commands.add_parser(
        "list", help="the tables that come with mmattn, or a table's rows"
    )
    listing.add_argument("table", nargs="?", metavar="TABLE")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("table", metavar="TABLE", help="a name that 'list' shows, or a YAML file")
    common.add_argument("--quick", action="store_true", help="the table's short variant")
    common.add_argument(
        "--out",
        type=Path,
        default=Path("work_dirs/reproduce"),
        metavar="DIR",
        help="where all results lie (default: work_dirs/reproduce)",
    )
    common.add_argument("--data-root", metavar="DIR", help="where the data lie")
    common.add_argument(
        "--cfg-options",
        nargs="+",
        action=ConfigOptions,
        default={},
        metavar="KEY=VALUE",
        help="override parts of every row's config; results with other options are others",
    )
    common.add_argument(
        "--any-code",
        action="store_true",
        help="take results that other versions of the code made; the report marks them",
    )
    common.add_argument(
        "--rows",
        nargs="+",
        metavar="NAME",
        help="only rows of this name or label, or with this in their name; and their baselines",
    )
    common.add_argument("--seeds", nargs="+", type=int, metavar="N", help="only these seeds")
    machine = common.add_argument_group("the machine")
    machine.add_argument(
        "--gpus",
        type=_positive,
        metavar="N",
        help="GPUs for one run; fewer than the recipe's accumulate gradients (default: the "
        "recipe's number, or all there are)",
    )
    machine.add_argument(
        "--share", type=_positive, default=1, metavar="N", help="runs that share a GPU (default: 1)"
    )
    machine.add_argument("--cpu", action="store_true", help="take no GPU")
    machine.add_argument(
        "--threads",
        type=_positive,
        default=1,
        metavar="N",
        help="CPU threads of a process (default: 1)",
    )
    machine.add_argument(
        "--nodes", type=_positive, default=1, metavar="N", help="machines that share each run"
    )
    machine.add_argument("--node-rank", type=int, default=0, help="which one this is, from 0")
    machine.add_argument(
        "--address", default="", metavar="HOST:PORT", help="machine 0, and a free port there"
    )

    run = commands.add_parser(
        "run", parents=[common], help="train, test and evaluate what is left, write the report"
    )
    run.add_argument(
        "--at-once",
        type=_positive,
        metavar="N",
        help="runs at a time on a CPU (default: by its cores) or on Slurm (default: 8); with "
        "GPUs, as many as they take",
    )
    run.add_argument(
        "--retries", type=int, default=2, metavar="N", help="of a run that died (default: 2)"
    )
    run.add_argument(
        "--skip-missing",
        action="store_true",
        help="leave out rows whose pre-trained weights are not there",
    )
    run.add_argument(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit the jobs to Slurm: slurm_partition=gpu slurm_account=me runtime=2880 "
        "(resources of Snakemake's Slurm executor)",
    )
    run.add_argument("--dry-run", action="store_true", help="only say what would be done")
    commands.add_parser("status", parents=[common], help="how far each run is")
    report = commands.add_parser(
        "report", parents=[common], help="write the report of what is done"
    )
    report.add_argument(
        "--replicates", type=int, default=1000, metavar="N", help="resamples of the images"
    )
    args = parser.parse_args(argv)
    if args.command != "list":
        if (args.nodes > 1) != bool(args.address) or not 0 <= args.node_rank < args.nodes:
            parser.error("several machines need --nodes N --node-rank 0..N-1 --address HOST:PORT")
        args.slurm = getattr(args, "slurm", None)
        if args.slurm is not None:
            if args.nodes > 1:
                parser.error("--slurm gives each run one machine; see docs/reproduction.md")
            wrong = [pair for pair in args.slurm if not pair.partition("=")[2]]
            if wrong:
                parser.error(f"--slurm expects KEY=VALUE, got {wrong[0]}")
            args.slurm = dict(pair.split("=", 1) for pair in args.slurm)
    return args


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, got {text}")
    return number


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if os.environ.get("MMDET_DATASETS") and args.command != "list":
        # the suite says itself where data lie, in every config that it writes
        args.data_root = args.data_root or os.environ.pop("MMDET_DATASETS")
    with preflight.guard("reproduce.py"):
        try:
            {"list": show_list, "run": run, "status": show_status, "report": report}[args.command](
                args
            )
        except (ValueError, FileNotFoundError) as error:
            raise preflight.PreflightError(str(error)) from error


def show_list(args: argparse.Namespace) -> None:
    from mmattn.reproduction import listing

    print(listing.rows(args.table) if args.table else listing.shipped())


def show_status(args: argparse.Namespace) -> None:
    from mmattn.reproduction import listing

    plan, chosen = _plan(args), _table(args).choose(args.rows, args.seeds)
    print(listing.states(plan, chosen))


def report(args: argparse.Namespace) -> None:
    from mmattn.reproduction import workflow

    rows = {row for row, _ in _table(args).choose(args.rows, args.seeds)}
    files = workflow.write_report(_plan(args), replicates=args.replicates, rows=rows)
    print("\n".join(f"wrote {_near(file)}" for file in files if file.suffix in (".md", ".html")))


def run(args: argparse.Namespace) -> None:
    from mmattn.reproduction import nodes, workflow

    workflow.check_installed(slurm=args.slurm is not None)
    table = _table(args)
    if args.node_rank:
        nodes.follow((args.out / table.name).resolve(), args.node_rank, _machine(args), print)
        return
    chosen = table.choose(args.rows, args.seeds)
    with workflow.alone(args.out / table.name):
        # nobody trains on them now
        if not args.data_root and not args.dry_run:
            workflow.prepare(table)
        plan = _plan(
            args,
            targets=lambda one: (one.row, one.seed) in chosen,
            write=not args.dry_run,
            skip_missing=args.skip_missing,
        )
        _check_machine(args, plan)
        for one in plan.runs:
            if one.missing and (one.row, one.seed) in chosen:
                print(f"left out: {one.name} needs {one.missing}")
        at_once = args.at_once or _at_once(args, plan)
        left = [one for one in plan.chosen if not one.result.exists()]
        print(f"{len(left)} of {_count(len(plan.chosen), 'run')} to do in {_near(plan.folder)}")
        print(_where(args, plan, at_once))
        if args.dry_run:
            for one in left:
                processes = _count(one.processes, "process", "es")
                print(f"  {one.name}: {_count(one.total, one.unit)}, {processes}")
            return
        try:
            workflow.execute(plan, at_once=at_once, retries=args.retries, slurm=args.slurm)
        except KeyboardInterrupt:
            print("what is trained so far is kept: the same command goes on", file=sys.stderr)
            raise
        print(f"report: {_near(plan.folder / 'report' / 'report.html')}")


def _count(number: int, what: str, plural: str = "s") -> str:
    return f"{number} {what}{plural * (number != 1)}"


def _check_machine(args: argparse.Namespace, plan) -> None:
    """Recipes for GPUs are not begun on a CPU by mistake."""
    wanted = max((one.gpus for one in plan.chosen), default=1)
    if wanted > 1 and not plan.machine.devices and not args.cpu:
        raise preflight.PreflightError(
            f"no GPU was found, and these recipes are for {wanted}: --cpu trains them on the CPU"
        )


def _where(args: argparse.Namespace, plan, at_once: int) -> str:
    machine = plan.machine
    if args.slurm is not None:
        return f"by Slurm, {_count(at_once, 'run')} at a time"
    if not machine.devices:
        return f"on the CPU, {_count(at_once, 'run')} at a time"
    most = max((one.processes // machine.nodes for one in plan.chosen), default=1)
    shared = f", {machine.share} runs share one" if machine.share > 1 else ""
    return (
        f"on {_count(len(machine.devices), 'GPU')} ({', '.join(machine.devices)}), up to {most} "
        f"for a run{shared}" + (f", on {machine.nodes} machines" if machine.nodes > 1 else "")
    )


def _table(args: argparse.Namespace):
    from mmattn.reproduction import table as tables

    return tables.load(tables.find(args.table), args.quick)


def _at_once(args: argparse.Namespace, plan) -> int:
    if args.slurm is not None:
        return 8
    most = max(run.processes for run in plan.runs)
    return max(1, (os.cpu_count() or 1) // (args.threads * most))


def _machine(args: argparse.Namespace):
    from mmattn.reproduction import devices
    from mmattn.reproduction.plan import Machine

    found = [] if args.cpu else devices.visible()
    if args.slurm is not None:
        # the machine that submits may have none: what a job gets is the cluster's business
        found = [str(i) for i in range(args.gpus or 8)]
    return Machine(
        devices=tuple(found),
        gpus=args.gpus or 0,
        share=args.share,
        threads=args.threads,
        nodes=args.nodes,
        address=args.address,
    )


def _plan(args: argparse.Namespace, **more):
    from rich.console import Console

    from mmattn.reproduction import plan

    table = _table(args)
    with Console(stderr=True).status("reading configs") as status:
        return plan.make(
            table,
            args.out,
            _machine(args),
            data_root=args.data_root,
            options=args.cfg_options,
            any_code=args.any_code,
            progress=status.update,
            **more,
        )


def _near(path: Path) -> Path:
    relative = Path(os.path.relpath(path))
    return path if relative.parts[:1] == ("..",) else relative


if __name__ == "__main__":
    main(sys.argv[1:])
