"""tables.tex: compiled by pdflatex, within the columns of the page, with every name as text."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from kdbench.report.build import build_report
from kdbench.report.latex import escape, latex_tables, pages
from kdbench.report.results import tables_of
from kdbench.report.select import read_selection
from tests.report.conftest import report_of, write_group

RESULTS = Path(__file__).parents[2] / "results"
CLASSES = {
    "article": r"\documentclass[twocolumn]{article}",
    # The widths of IEEEtran: a page of 516 pt with columns of 252 pt.
    "ieee": r"\documentclass[twocolumn]{article}\setlength{\textwidth}{516pt}\setlength{\columnsep}{12pt}",
    "one column": r"\documentclass{article}",
}
HOSTILE = (
    r"<b>|x|</b> & \input{y} $1_2$ 100% #3 ~^ `c` *d* [e](f) \"g\" 'h' -- --- ?` !` ,, << >>",
    "[starts with a bracket",
    "*",
    "emoji \U0001f600 \u5b57 \u0416 \u05d0 \u0301 \u200d\ufe0f",
    "\u03b1 β Ω é ü ß Ł ñ č ç ő å ± \u00d7 ≤ … “q” \u2013 —",
    "a_name_of_many_words_that_are_joined_" * 4,
    "x" * 300,
    "\\",
    "control \x07 \n newline",
)
BASELINE, DISTILLED = (90.0, 90.2, 89.9), (90.5, 90.72, 90.38)
needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")


def tex_of(report):
    return latex_tables(tables_of(report))


def hostile_report(root):
    for place, name in enumerate(HOSTILE):
        write_group(root, BASELINE, student=name, num_params=1000 + place)
        write_group(root, DISTILLED, student=name, num_params=1000 + place, teacher="resnet20", method="logit")
    write_group(root, DISTILLED, student=HOSTILE[0], num_params=1000, teacher=HOSTILE[3], method=HOSTILE[5])
    return report_of(root)


def sixty_methods(root):
    write_group(root, BASELINE)
    for number in range(60):
        write_group(root, DISTILLED, teacher="resnet20", method=f"method_number_{number}_of_many_that_have_long_names")
    return report_of(root)


def lab_report(_):
    return build_report([RESULTS / "lab" / "runs"], read_selection(RESULTS / "lab" / "selected.yaml"))


def methods_report(_):
    return build_report([RESULTS / "methods"], read_selection(RESULTS / "methods" / "selection" / "selected.yaml"))


REPORTS = {"lab": lab_report, "methods": methods_report, "hostile": hostile_report, "sixty": sixty_methods}


@pytest.fixture(scope="module", params=REPORTS)
def tex(request, tmp_path_factory):
    """The tables of each report, computed once for all pages."""
    return tex_of(REPORTS[request.param](tmp_path_factory.mktemp("runs")))


@needs_latex
@pytest.mark.slow
@pytest.mark.parametrize("page", CLASSES)
def test_pdflatex_sets_every_table_within_the_page(tex, page, tmp_path, request):
    if page == "one column" and "hostile" in request.node.name:
        pytest.skip("columns of 345 pt are wide enough for usual names alone")
    (tmp_path / "tables.tex").write_text(tex)
    document = [
        CLASSES[page],
        r"\usepackage{booktabs,tabularx}",
        r"\begin{document}",
        r"\input{tables}",
        "\\end{document}",
    ]
    (tmp_path / "main.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "main.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=120)
    log = (tmp_path / "main.log").read_text(errors="replace")
    assert done.returncode == 0, re.findall(r"^!.*(?:\n.*){3}", log, re.MULTILINE)
    assert re.findall(r"Overfull \\hbox.*|Float too large.*|Missing character.*", log) == []
    assert (tmp_path / "main.pdf").stat().st_size > 10_000


def body(tex):
    """Return the rows of the tables, each with its cells."""
    rows = [line for line in tex.splitlines() if line.endswith(r" \\")]
    return [re.split(r"(?<!\\)&", row.removesuffix(r" \\")) for row in rows]


def is_balanced(text):
    """Return whether braces match, those that are printed apart."""
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        if depth < 0:
            return False
    return depth == 0


def test_environments_and_braces_are_balanced_and_rows_have_a_cell_for_each_column(tmp_path):
    tex = tex_of(hostile_report(tmp_path))
    opened, closed = re.findall(r"\\begin\{(\w+\*?)\}", tex), re.findall(r"\\end\{(\w+\*?)\}", tex)
    assert sorted(opened) == sorted(closed)
    assert opened.count("table*") >= 3
    assert is_balanced(tex)
    for table in tex.split(r"\begin{table*}")[1:]:
        assert len({len(row) for row in body(table)}) == 1


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_is_text(name):
    tex = escape(name)
    assert tex.isascii()
    assert is_balanced(tex)
    printed = re.sub(r"\\kdbreak\{\}|\\symbol\{\d+\}|\\[A-Za-z]+(?=\{|\$)|\\[&%$#_{}`'^\"~=.]|\$", "", tex)
    assert not re.search(r"[%#_~^\\&]", printed)


@pytest.mark.parametrize(
    ("character", "tex"),
    [
        ("\U0001f600", "{[}U+1F600{]}"), ("字", "{[}U+5B57{]}"), ("Ж", "{[}U+0416{]}"), ("é", r"\'{e}"),
        ("\u03b1", r"$\alpha$"),
        ("Ω", r"$\Omega$"), ("\u03bf", "{[}U+03BF{]}"), ("ά", "{[}U+03AC{]}"), ("ą", "{[}U+0105{]}"), ("ß", r"\ss{}"),
        ("<", r"\textless{}"), ("_", r"\_"), ("\x07", "{[}U+0007{]}"),
    ],
)  # fmt: skip
def test_a_character_that_pdflatex_cannot_set_is_its_number(character, tex):
    assert escape(character) == tex


def test_long_words_may_be_broken_after_separators_and_others_are_left_whole():
    assert escape("resnet20 logit") == "resnet20 logit"
    assert escape("temperature=2.0") == r"temperature=\kdbreak{}2.0"
    assert escape("shake_shake-26/wide") == r"shake\_\kdbreak{}shake-{}\kdbreak{}26/\kdbreak{}wide"
    assert escape("probabilistically") == r"probabil\kdbreak{}isticall\kdbreak{}y"
    assert len(max(escape("x" * 100).split(r"\kdbreak{}"), key=len)) <= 8


def test_a_significant_gain_has_a_dagger_that_the_caption_explains(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, DISTILLED, teacher="resnet20", method="logit")
    write_group(tmp_path, (90.1, 89.8, 90.3), teacher="resnet20", method="feature")
    tex = tex_of(report_of(tmp_path))
    gains = {row[2].strip(): row for row in body(tex.split(r"\label{tab:gains}")[1])}
    assert r"\dagger" in gains["logit"][4]
    assert r"\dagger" not in gains["feature"][4]
    assert re.search(r"\$\[[+-]\d\.\d\d, [+-]\d\.\d\d\]\$", gains["logit"][5])
    assert gains["logit"][3].strip() == "$3$ / $3$"
    caption = re.search(r"\\caption\{(.*)\}\\label\{tab:gains\}", tex).group(1)
    assert r"$^{\dagger}$: $p < 0.05$" in caption
    assert "Holm's method over 2 tests" in caption
    assert "Welch's t-test" in caption


def test_the_primary_analysis_is_what_the_tables_show(tmp_path):
    write_group(tmp_path, BASELINE)
    write_group(tmp_path, DISTILLED, teacher="resnet20", method="logit")
    tables = tables_of(report_of(tmp_path))
    tables["gains"] = tables["gains"].assign(
        analysis="blocks", family="primary", primary_low=1.25, primary_high=2.5, p_primary=0.01, p_adjusted=0.34,
        significant=False,
    )  # fmt: skip
    tex = latex_tables(tables)
    (row,) = body(tex.split(r"\label{tab:gains}")[1])[1:]
    assert [cell.strip() for cell in row[5:]] == ["$[+1.25, +2.50]$", "$0.34$"]
    assert r"\dagger" not in row[4]
    assert "seeds as blocks" in tex


def test_an_interaction_says_which_teacher(tmp_path):
    for student in ("resnet8", "resnet14"):
        write_group(tmp_path, BASELINE, student=student)
        for seed in (0, 1):
            write_group(tmp_path, DISTILLED, student=student, teacher="resnet20", teacher_seed=seed, method="logit")
    rows = body(tex_of(report_of(tmp_path)).split(r"\label{tab:interactions}")[1])
    teachers = [row[1].strip() for row in rows[1:]]
    assert teachers == ["resnet20 (seed 0)", "resnet20 (seed 1)", "resnet20 (pooled)"]


@pytest.mark.parametrize("lines", [[1], [1] * 40, [1] * 41, [3] * 90, [60, 1, 60], [39, 2]])
def test_long_tables_are_split_at_rows(lines):
    parts = pages(lines)
    assert [row for start, end in parts for row in range(start, end)] == list(range(len(lines)))
    assert all(sum(lines[start:end]) <= 40 or end - start == 1 for start, end in parts)
