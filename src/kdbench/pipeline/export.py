"""`kdbench-export RUN --to FORMAT --out DIR`: the network of a finished run as a file for other tools."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdbench.config.paths import is_folder
from kdbench.config.targets import check_module_names
from kdbench.deploy.formats import FORMATS, NAMINGS, PLAIN
from kdbench.errors import ConfigError, Parser


def export(arguments: Sequence[str]) -> None:
    """Export the network of a command line, and print what was written.

    Raises:
        ConfigError: the command line is wrong, or the network cannot be exported.
    """
    given = parse_arguments(arguments)
    # Here, because they import torch, which --help and most mistakes do without.
    from kdbench.deploy.export import export_run
    from kdbench.pipeline.arguments import RUN, read_runs

    runs = read_runs(given.run, given.trust)
    if len(runs) > 1:
        names = ", ".join(run.directory.path.name for run in runs[:3])
        raise ConfigError(
            f"one run is exported, and {len(runs)} are given ({names}, ...); give one",
            code="usage",
            key=RUN,
        )
    (run,), given.out = runs, given.out.expanduser()
    made = export_run(run, given.to, given.out, given.names, given.architecture, given.data_root, given.test_images)
    checked = made["checked"]
    print(
        f"{given.out / made['file']}: {(given.out / made['file']).stat().st_size:,} bytes; test accuracy "
        f"{100 * checked['test_accuracy']:.2f}% on {checked['test_images']} images, largest difference of logits from "
        f"the run {checked['largest_difference_of_logits']:.2g} (tolerance {checked['tolerance']:.2g})\n"
        f"{given.out / 'model.json'}: classes, preprocessing, input and output"
    )


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the checked arguments of a command line.

    Raises:
        ConfigError: one is wrong.
    """
    from kdbench.pipeline.arguments import add_trust

    parser = Parser(
        prog="kdbench-export",
        description="Write the network of a finished run as a file for other tools, with a description beside it. The "
        "file is checked on the run's test images; where it does not give the run's logits, nothing is written.",
        epilog="Exit code 0: written; 2: nothing was written.",
    )
    parser.add_argument(
        "run",
        nargs="+",
        metavar="RUN",
        help="run directory, or the key of a run in outputs/runs; measurements are left out",
    )
    parser.add_argument("--to", choices=FORMATS, required=True, help="onnx and torch: a program; safetensors: weights")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write, which does not exist")
    parser.add_argument(
        "--names", choices=NAMINGS, default=PLAIN, help="names of the weights, with --to safetensors (plain)"
    )
    parser.add_argument(
        "--architecture", metavar="NAME", help="name of the network in torchvision or timm, where it has another"
    )
    parser.add_argument(
        "--data-root", type=Path, metavar="DIR", help="folder of the data (that of the run's config, or $KDBENCH_DATA)"
    )
    parser.add_argument(
        "--test-images", action="store_true", help="write the test images with their labels too, as test.npz"
    )
    add_trust(parser)
    given = parser.parse_args(arguments)
    check_module_names(given.trust)
    for flag, value in (("--names", given.names != PLAIN), ("--architecture", given.architecture is not None)):
        if value and (given.to != "safetensors" or (flag == "--architecture" and given.names == PLAIN)):
            need = "--to safetensors" + (" and --names torchvision or timm" if flag == "--architecture" else "")
            raise ConfigError(f"{flag} has an effect with {need} only", code="usage", key=flag)
    if given.data_root and not is_folder(given.data_root):
        raise ConfigError(
            f"--data-root is {given.data_root}, and there is no such folder", code="not_found", key="--data-root"
        )
    return given
