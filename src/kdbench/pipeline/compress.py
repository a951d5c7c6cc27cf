"""`kdbench-compress RUN method=NAME`: compress the network of a finished run, by one step or a chain of several."""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from kdbench.errors import KdbenchError, Parser, report_error
from kdbench.pipeline.steps import TRAININGS, Chain, compressions, jobs_of, read_chain

if TYPE_CHECKING:
    from kdbench.pipeline.chain import Link
    from kdbench.rundir.related import RelatedRun

log = logging.getLogger(__name__)


def compress(arguments: Sequence[str]) -> int:
    """Execute the compressions of a command line, and print what they gave.

    Returns:
        The exit code: 0 done; otherwise that of the first chain that failed.

    Raises:
        ConfigError: the command line is wrong, or a run cannot be compressed in this way.
    """
    from kdbench.pipeline.arguments import parse_runs_and_overrides, read_runs

    given, texts, overrides = parse_runs_and_overrides(parser_of(), arguments)
    chains = [read_chain(job, given.config_dir) for job in jobs_of(overrides)]
    # Here, because they import torch, which --help and most mistakes do without.
    from kdbench.pipeline.chain import execute_chain
    from kdbench.pipeline.tables import Row, compression_table

    runs = read_runs(texts, given.trust, trained_only=True)
    planned = [(chain, run, plan(run, chain, given)) for run in runs for chain in chains]
    code, rows = 0, dict[Path, Row]()
    for chain, run, links in planned:
        log.info("\n%s: %s", run.config.title, chain.title)
        before = run.summary.test_acc_best
        for result in execute_chain(links):
            if result.error is None:
                assert result.directory is not None
                summary = result.directory.read_summary()
                rows[result.directory.path] = Row(result.directory.path, summary, before, run.summary.test_acc_best)
                before = summary.test_acc_best
            elif isinstance(result.error, KdbenchError):
                failed = report_error(result.error, f"{run.config.title}: {chain.title}: ", "kdbench-compress")
                code = code or failed
            else:
                raise result.error
    if rows:
        print(f"\n{compression_table(list(rows.values()))}")
    return code


def plan(run: "RelatedRun", chain: Chain, given: argparse.Namespace) -> "list[Link]":
    """Return the runs of a chain that begins with a finished run. Errors: see `plan_chain`."""
    from kdbench.pipeline.arguments import RUN, output_root_of
    from kdbench.pipeline.chain import Link, plan_chain
    from kdbench.rundir.related import check_own_logits

    check_own_logits(run, RUN)
    root = Link.of(run)
    config = dataclasses.replace(root.config, output_root=output_root_of(run), trust=list(given.trust))
    return plan_chain(dataclasses.replace(root, config=config), chain, given.config_dir)


def parser_of() -> Parser:
    """Return the parser of the command line."""
    from kdbench.pipeline.arguments import add_shared

    parser = Parser(
        prog="kdbench-compress",
        description="Compress the network of finished runs. Every step is a run of its own, found by its key: what is "
        "done is skipped, and the same command continues.",
        epilog=f"steps: {', '.join([*compressions(None), *TRAININGS])}. Examples: kdbench-compress "
        "outputs/runs/RUN method=int8; kdbench-compress outputs/runs/TEACHER chain=[structured,distil,int8] "
        "distil.student=resnet8 structured.ratio=0.5. Several values: magnitude.sparsity=0.5,0.8,0.9.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="RUN | KEY=VALUE",
        help="run directories; method=NAME or chain=[NAME,...]; settings of a step, NAME.KEY=VALUE; overrides of every "
        "run, such as runtime.threads=1",
    )  # fmt: skip
    add_shared(parser)
    return parser
