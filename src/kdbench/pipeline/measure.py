"""`kdbench-measure RUN...`: size, latency, memory, energy and accuracy of networks, measured in turn in one process."""

import dataclasses
from collections.abc import Sequence

from kdbench.errors import ConfigError, Parser
from kdbench.pipeline.steps import compose_measurement, is_within
from kdbench.sweep.overrides import key_of

SHARED = ("runtime.device", "data.root", "data.download", "on_busy", "overwrite", "tracker")
"""Keys of a run that a measurement has too; the others are those of conf/measure/."""


def measure(arguments: Sequence[str]) -> int:
    """Measure the networks of a command line, and print a table.

    Returns:
        The exit code: 0.

    Raises:
        ConfigError: the command line is wrong, or a network cannot be measured.
        RunError: the measurement failed.
    """
    from kdbench.pipeline.arguments import output_root_of, parse_runs_and_overrides, read_runs

    given, texts, overrides = parse_runs_and_overrides(parser_of(), arguments)
    shared = [text for text in overrides if is_within(key_of(text), SHARED)]
    for text in overrides:
        key = key_of(text)
        if key.partition(".")[0] in ("runtime", "data", "checkpoint") and not is_within(key, SHARED):
            remedy = "give threads=N, which both engines take" if key == "runtime.threads" else "leave it out"
            raise ConfigError(f"{text} has no effect on a measurement; {remedy}", code="unused_key", key=key)
    settings = compose_measurement([text for text in overrides if text not in shared], given.config_dir)
    # Here, because they import torch, which --help and most mistakes do without.
    from kdbench.pipeline.chain import Link, measure_configs
    from kdbench.pipeline.tables import measurement_table
    from kdbench.runner.policy import run_with_retries

    runs = read_runs(texts, given.trust)
    links = []
    for run in runs:
        config = dataclasses.replace(run.config, output_root=output_root_of(run), trust=list(given.trust))
        links.append(dataclasses.replace(Link.of(run), config=config))
    results = run_with_retries(measure_configs(links, settings, shared, given.config_dir))
    for result in results:
        if result.error:
            raise result.error
    done = [(r.directory.path, r.directory.read_summary()) for r in results if r.directory]
    print(f"\n{measurement_table(done)}")
    for path, _ in done:
        print(f"measurement: {path}")
    return 0


def parser_of() -> Parser:
    """Return the parser of the command line."""
    from kdbench.pipeline.arguments import add_shared

    parser = Parser(
        prog="kdbench-measure",
        description="Measure the networks of finished runs in turn, in one process: size on disk, weights, latency and "
        "throughput with ONNX Runtime and torch, memory, energy, and accuracy as they are executed.",
        epilog="Example: kdbench-measure outputs/runs/A outputs/runs/B batches=[1,64] threads=1 rounds=30. Latencies "
        "can be compared among networks of one command.",
    )
    parser.add_argument(
        "words", nargs="*", metavar="RUN | KEY=VALUE",
        help="run directories; engines=[onnx,torch], batches=[1,64], rounds=30, warmup=5, threads=1; runtime.device, "
        "data.root, overwrite",
    )  # fmt: skip
    add_shared(parser)
    return parser
