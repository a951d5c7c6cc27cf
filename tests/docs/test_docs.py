"""The documentation: its links, paths, commands and examples work as written."""

import functools
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from kdbench import cli
from kdbench.config import CONF_DIR, RunConfig, compose
from kdbench.pipeline.steps import compose_measurement, read_chain
from kdbench.search.space import read_space
from kdbench.sweep.overrides import expand

CHECKOUT = Path(__file__).parents[2]
README = CHECKOUT / "README.md"
PAGES = [
    README,
    *(CHECKOUT / name for name in ("CONTRIBUTING.md", "CHANGELOG.md")),
    *(CHECKOUT / folder / "README.md" for folder in ("outputs", "results/lab")),
    *sorted((CHECKOUT / "docs").glob("*.md")),
]
ENTRY_POINTS: dict[str, Callable[[], None]] = {
    "kdbench-bench": cli.main_bench,
    "kdbench-compare": cli.main_compare,
    "kdbench-compress": cli.main_compress,
    "kdbench-export": cli.main_export,
    "kdbench-measure": cli.main_measure,
    "kdbench-report": cli.main_report,
    "kdbench-study": cli.main_study,
    "kdbench-verify": cli.main_verify,
}
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(CHECKOUT)))


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a page in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def command_lines(page: Path) -> Iterator[list[str]]:
    """Yield each command of a page's code blocks as words, without variables in front of it."""
    indented = re.findall(
        r"^    (.*)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL), re.M
    )
    for line in "\n".join([*blocks(page, "bash"), *indented]).replace("\\\n", " ").splitlines():
        for part in re.split(r"[;&|]+ ", line):
            if re.match(r"([A-Z_]+=\S* )*(kdbench|make |scripts/)", part.strip()):
                words = shlex.split(part, comments=True)
                while words and re.match(r"[A-Z_]+=", words[0]):
                    words.pop(0)
                yield words


@pytest.fixture
def files_of_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory with the files that the pages show, typed in as written."""
    for page in (
        README,
        *(
            CHECKOUT / "docs" / f"{name}.md"
            for name in ("configuration", "networks", "data", "recipes", "methods", "scaling")
        ),
    ):
        write_files(page, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def write_files(page: Path, folder: Path) -> None:
    """Write the files that a page shows; a comment at the top is their path."""
    for block in (*blocks(page, "yaml"), *blocks(page, "python")):
        if match := re.search(r"^# (my_\S+)$", block, re.MULTILINE):
            file = folder / match[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)


def anchors(page: Path) -> set[str]:
    """Return the anchors of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@every_page
def test_relative_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not target.startswith("http"):
            path, _, anchor = target.partition("#")
            file = page.parent / path if path else page
            assert file.exists(), target
            assert not anchor or anchor in anchors(file), target


@every_page
def test_paths_in_the_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for path in re.findall(r"`([\w.-]+/[\w./-]+\.(?:py|sh|md|yaml|json|csv|toml))`", text):
        if not re.search(r"[A-Z]{3}|^outputs/|^report/", path.removesuffix("README.md")):
            bases = (CHECKOUT, CHECKOUT / "src" / "kdbench", page.parent)
            assert any((base / path).exists() for base in bases), path


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    PAGES,
    ids=lambda page: str(page.relative_to(CHECKOUT)),
)
def test_commands_in_code_blocks_can_be_given(
    page: Path, files_of_pages: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for program, *words in command_lines(page):
        if program == "kdbench":
            check_kdbench(words)
        elif program in ENTRY_POINTS:
            check_other_command(program, words, monkeypatch, capsys)
        elif program == "make":
            for target in (word for word in words if "=" not in word):
                assert re.search(rf"^{target}:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE), target
        else:
            assert (CHECKOUT / program).is_file(), program


def check_kdbench(words: list[str]) -> None:
    """Check the flags of a command, and compose its runs."""
    config_dir = value_of(words, "--config-dir")
    overrides = [word for word in words if "=" in word]
    if "-m" in words:
        hydra = [word for word in overrides if word.startswith("hydra")]
        others = [word for word in overrides if word not in hydra]
        given = dict(word.split("=", 1) for word in hydra)
        sweeper = {key: given.pop(key) for key in list(given) if key.startswith(("hydra/sweeper", "hydra.sweeper"))}
        runs = searched_runs(sweeper, others) if sweeper else expand(others)
        check_launcher(given)
        if not re.search(r"[A-Z]{3}", config_dir or ""):  # a place that the reader's own command has made
            check_runs(runs, config_dir)
    else:
        assert {word for word in words if word.startswith("-")} <= {"--help", "--cfg", "--config-dir", "--version"}
        check_runs([tuple(overrides)], config_dir)


def searched_runs(sweeper: dict[str, str], overrides: list[str]) -> list[tuple[str, ...]]:
    """Check the sweeper's keys and options, and return a run of each combination of options that it searches."""
    folder = CONF_DIR / "hydra" / "sweeper"
    assert sweeper.pop("hydra/sweeper") == "optuna"
    keys = set(OmegaConf.load(folder / "optuna.yaml"))
    for key, value in sweeper.items():
        if key.startswith("hydra/"):
            assert (folder / key.removeprefix("hydra/sweeper/") / f"{value}.yaml").is_file(), (key, value)
        else:
            assert key.removeprefix("hydra.sweeper.").split(".")[0] in keys | {"sampler", "pruner"}, key
    space = read_space(overrides)
    combinations = list(space.combinations())
    return [
        (
            *(one.text for one in space.fixed),
            *(d.text(options[d.key]) for d in space.choosing),
            *(d.text(d.extremes()[0]) for d in space.others if options is combinations[-1] or d.key[:6] == "recipe"),
        )
        for options in combinations
    ]


def check_launcher(given: dict[str, str]) -> None:
    """Check that a launcher has the keys that a command gives it."""
    name = given.pop("hydra/launcher", "lockstep")
    file = CONF_DIR / "hydra" / "launcher" / f"{name}.yaml"
    keys = set(OmegaConf.load(file)) if name != "lockstep" else {"max_learners"}
    assert {key.removeprefix("hydra.launcher.").split(".")[0] for key in given} <= keys, (name, given)


def check_runs(runs: list[tuple[str, ...]], config_dir: str | None = None) -> None:
    """Compose the first and the last run of a command."""
    for run in (runs[0], runs[-1]):
        composed_once(run, config_dir)


@functools.cache
def composed_once(overrides: tuple[str, ...], config_dir: str | None) -> RunConfig:
    return compose(overrides, config_dir)


def check_other_command(
    program: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Compare the flags of a command with its help, and compose its overrides."""
    monkeypatch.setattr("sys.argv", [program, "--help"])
    with pytest.raises(SystemExit) as ended:
        ENTRY_POINTS[program]()
    assert ended.value.code == 0
    flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    assert {word for word in words if word.startswith("--")} <= flags, words
    overrides = [word for word in words if "=" in word]
    if program == "kdbench-compress":
        for job in expand(overrides):
            read_chain(job)
        return
    if program == "kdbench-measure":
        compose_measurement(overrides, None)
        return
    for override in overrides:
        if override.startswith("study="):
            assert (CONF_DIR / "study" / f"{override.removeprefix('study=')}.yaml").is_file(), override
    of_runs = [override for override in overrides if not override.startswith("study=")]
    check_runs(expand(of_runs))


def value_of(words: list[str], flag: str) -> str | None:
    return words[words.index(flag) + 1] if flag in words else None


@pytest.mark.slow
def test_example_of_the_api_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_blocks(CHECKOUT / "docs" / "api.md")


def test_examples_of_the_readme_run_as_written(files_of_pages: Path) -> None:
    import kdbench

    small = ["data=shapes", "data.num_train=64", "data.num_val=50", "data.num_test=60", "recipe=smoke"]
    config = kdbench.compose(["student=resnet8", "teacher=resnet8", "method=regression", *small], "my_configs")
    run = kdbench.run(config)
    assert run.summary.role == "distilled"
    assert run.metrics is not None
    assert "kd" in run.metrics
    assert OmegaConf.load(run.path / "config.yaml").method._target_ == "my_methods.LogitRegression"


@pytest.mark.slow
def test_api_example_of_the_readme_runs_as_written(files_of_pages: Path) -> None:
    run_blocks(README)


def run_blocks(page: Path) -> None:
    """Run the python blocks of a page one after the other, in one namespace, as a notebook does."""
    namespace: dict[str, object] = {"__name__": "example"}
    for block in blocks(page, "python"):
        if not block.startswith("# my_"):
            exec(compile(block, page.name, "exec"), namespace)


def test_readme_is_at_most_200_lines_long() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_run_directory_page_lists_the_keys_of_the_summary() -> None:
    from kdbench.rundir.summary import KEYS

    page = (CHECKOUT / "docs" / "run-directory.md").read_text()
    section = page.split("## summary.json")[1].split("\n## ")[0]
    listed = [key for row in re.findall(r"^\| (`.*?) \|", section, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)]
    assert sorted(listed) == sorted(KEYS)
