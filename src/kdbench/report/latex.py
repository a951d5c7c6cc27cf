"""tables.tex: groups, gains and interactions for a publication, set by pdflatex on a page of one or two columns."""

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from kdbench.report.column import POINTS, P
from kdbench.report.columns import format_value, is_missing
from kdbench.report.gains import POOLED
from kdbench.report.published import name_analyses, primary_view
from kdbench.report.runs import rows_of

HEADER = r"""% Requires \usepackage{booktabs,tabularx}. The tables are as wide as the page, of one column or two.
% Possible ends of lines within long names:
\providecommand{\kdbreak}{\penalty500\hskip0pt\relax}
"""
DAGGER = r"\rlap{$^{\dagger}$}"
MOST_LINES = 40
"""Largest number of lines of one float: with heading and caption, what a page of 10 pt holds."""
LINE = 420.0
"""Width in pt by which the number of lines is estimated, that of a page of two columns without the spaces."""
CHARACTER = 4.3
"""Mean width of a character in pt, at 8 pt."""
MOST_CHARACTERS = 200
"""Longest text of a cell; what is longer is cut."""


@dataclass(frozen=True)
class LatexTable:
    """Table to be set: texts as they are, numbers as TeX."""

    label: str
    caption: str
    texts: Mapping[str, Sequence[str]]
    """Columns that wrap, by their headings."""
    numbers: Mapping[str, Sequence[str]]
    """Columns that do not, already TeX."""


def latex_tables(tables: Mapping[str, pd.DataFrame], protocol: Sequence[str] = ()) -> str:
    """Return the text of tables.tex.

    Args:
        tables: groups, gains and interactions.
        protocol: sentences that each caption ends with.
    """
    makers: dict[str, Callable[[pd.DataFrame], LatexTable]] = {
        "groups": groups_for_latex, "gains": gains_for_latex, "interactions": interactions_for_latex,
    }  # fmt: skip
    made = [make(tables[name]) for name, make in makers.items() if len(tables[name])]
    return "\n".join([HEADER, *(table_float(table, protocol) for table in made)])


def groups_for_latex(table: pd.DataFrame) -> LatexTable:
    spread = [" (" + number(std) + ")" if not is_missing(std) else "" for std in table["std"]]
    return LatexTable(
        "groups",
        r"Test accuracy in per cent: mean over $n$ runs that differ in their seeds, in parentheses the sample standard "
        "deviation.",
        {"student": names_of(table.student), "teacher": names_of(table.teacher), "method": methods_of(table)},
        {"$n$": [number(n, "d") for n in table.n],
         r"accuracy (std)": [number(mean) + std for mean, std in zip(table["mean"], spread, strict=True)]},
    )  # fmt: skip


def gains_for_latex(table: pd.DataFrame) -> LatexTable:
    view = primary_view(table)
    pooled = "; of pooled rows, teachers and runs of the baseline" if (table.teacher_seed == POOLED).any() else ""
    return LatexTable(
        "gains",
        "Gains over the same student without a teacher, in points of test accuracy. $n$: runs of the method and of the "
        f"baseline{pooled}. {tests_of(table, view)}",
        {"student": names_of(table.student), "teacher": names_of(table.teacher), "method": methods_of(table)},
        {"$n$": [sizes_of(pair) for pair in zip(table.n, table.n_base, strict=True)],
         "gain": marked(table.delta, view.significant), r"95\,\% interval": intervals(view),
         "$p$": [number(p, P) for p in view.p_adjusted]},
    )  # fmt: skip


def interactions_for_latex(table: pd.DataFrame) -> LatexTable:
    view, rows = primary_view(table), rows_of(table)
    sizes = [", ".join((sizes_of((r.n_a, r.n_base_a)), sizes_of((r.n_b, r.n_base_b)))) for r in rows]
    alike = len(set(sizes)) == 1
    counted = f"$n$: runs of the method and of the baseline, of both students{': ' + sizes[0] if alike else ''}. "
    return LatexTable(
        "interactions",
        "Gain of the larger student (named first) minus gain of the smaller one, from the same teacher by the same "
        "method, in points of test accuracy. "
        + counted + tests_of(table, view),
        {"method": [method_text(row.method, row.setting_a, row.setting_b) for row in rows],
         "teacher": teachers_of(table), "students": [f"{row.student_a}, {row.student_b}" for row in rows]},
        {"gains": [", ".join((number(row.gain_a, POINTS), number(row.gain_b, POINTS))) for row in rows],
         "difference": marked(table.difference, view.significant), r"95\,\% interval": intervals(view),
         "$p$": [number(p, P) for p in view.p_adjusted]} | ({} if alike else {"$n$": sizes}),
    )  # fmt: skip


def tests_of(table: pd.DataFrame, view: pd.DataFrame) -> str:
    """Return the sentences of a caption on intervals and p."""
    tested = view.p_adjusted.notna()
    if not tested.any():
        return "Too few runs for intervals and tests."
    families = (table.family if table.family.notna().any() else table.role)[tested].value_counts(sort=False)
    named = ", ".join(f"{name}: {count}" for name, count in families.items())
    count = len(view[tested])
    over = f"{count} {'test' if count == 1 else 'tests'}" if len(families) < 2 else f"the tests of a family ({named})"
    return (
        f"Intervals: 95\\,\\%, by {name_analyses(view.analysis[tested].tolist())}, each for its row alone. "
        f"$p$: two-sided, by the same analysis, adjusted by Holm's method over {over}; "
        r"$^{\dagger}$: $p < 0.05$."
    )


def names_of(column: "pd.Series[Any]") -> list[str]:
    return ["" if is_missing(name) else str(name) for name in column]


def methods_of(table: pd.DataFrame) -> list[str]:
    return [method_text(method, setting) for method, setting in zip(table.method, table.setting, strict=True)]


def method_text(method: str, *settings: Any) -> str:
    """Return a method with the settings of its groups, each once."""
    shown = "; ".join(dict.fromkeys(str(setting) for setting in settings if not is_missing(setting) and setting))
    return f"{method} ({shown})" if shown else str(method)


def teachers_of(table: pd.DataFrame) -> list[str]:
    """Return the teachers of interactions, with their seeds where there are several of one name."""
    seeds = table.groupby("teacher", dropna=False).teacher_seed.transform("nunique") > 1
    texts = zip(names_of(table.teacher), table.teacher_seed, seeds, strict=True)
    kinds = {True: POOLED, False: "seed {}"}
    return [f"{name} ({kinds[seed == POOLED].format(seed)})" if several else name for name, seed, several in texts]


def sizes_of(pair: Sequence[Any]) -> str:
    return " / ".join(number(n, "d") or "--" for n in pair)


def number(value: Any, form: str = ".2f") -> str:
    """Return a number as TeX, with a minus sign instead of a hyphen; empty where it is missing."""
    text = format_value(value, form)
    return f"${text}$" if text else ""


def marked(values: "pd.Series[float]", significant: "pd.Series[Any]") -> list[str]:
    """Return gains, those that are significant with a dagger that takes no space."""
    pairs = zip(values, significant.fillna(False), strict=True)
    return [number(value, POINTS) + (DAGGER if is_significant else "") for value, is_significant in pairs]


def intervals(view: pd.DataFrame) -> list[str]:
    pairs = zip(view.low, view.high, strict=True)
    ends = ([format_value(end, POINTS) for end in pair] for pair in pairs)
    return [f"$[{low}, {high}]$" if low else "" for low, high in ends]


def table_float(table: LatexTable, protocol: Sequence[str]) -> str:
    """Return a table as floats, as many as its lines need."""
    texts = {heading: [cut(text) for text in column] for heading, column in table.texts.items() if any(column)}
    factors = widths(texts)
    rows = list(zip(*texts.values(), *table.numbers.values(), strict=True))
    free = LINE - CHARACTER * sum(max(map(printed_length, column)) + 2 for column in table.numbers.values())
    room = [max(4, int(factor * free / len(texts) / CHARACTER)) for factor in factors]
    lines = [max([1, *(-(-len(text) // most) for text, most in zip(row, room, strict=False))]) for row in rows]
    parts = []
    for start, end in pages(lines):
        cells = [[escape(text) for text in row[: len(texts)]] + list(row[len(texts) :]) for row in rows[start:end]]
        caption = "Continued." if start else " ".join([table.caption, *map(escape_prose, protocol)])
        parts.append(float_of(table, texts, factors, cells, caption, "" if start else f"\\label{{tab:{table.label}}}"))
    return "\n".join(parts)


def float_of(
    table: LatexTable,
    texts: Mapping[str, Any],
    factors: Sequence[float],
    cells: Sequence[Sequence[str]],
    caption: str,
    label: str,
) -> str:
    """Return one float."""
    wrapped = [f">{{\\hsize={factor:.3f}\\hsize\\raggedright\\arraybackslash}}X" for factor in factors]
    columns = "".join(wrapped) + "r" * len(table.numbers)
    headings = " & ".join([*texts, *table.numbers])
    return "\n".join(
        [
            r"\begin{table*}[tp]",
            r"\setlength{\belowcaptionskip}{4pt}",
            f"\\caption{{{caption}}}{label}",
            r"\centering\footnotesize\setlength{\tabcolsep}{3pt}",
            f"\\begin{{tabularx}}{{\\textwidth}}{{@{{}}{columns}@{{}}}}",
            r"\toprule",
            f"{headings} \\\\",
            r"\midrule",
            *(f"{' & '.join(row)} \\\\" for row in cells),
            r"\bottomrule",
            r"\end{tabularx}",
            r"\end{table*}",
            "",
        ]
    )


def cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else f"{text[: MOST_CHARACTERS - 1]}…"


def printed_length(tex: str) -> int:
    """Return the number of characters that a number's TeX prints."""
    return len(tex.replace(DAGGER, "").replace("$", ""))


def widths(texts: Mapping[str, Sequence[str]]) -> list[float]:
    """Return the share of each column that wraps, in means of all of them: by the root of its longest text."""
    roots = [min(max(map(len, (heading, *column))), 60) ** 0.5 for heading, column in texts.items()]
    return [root * len(roots) / sum(roots) for root in roots]


def pages(lines: Sequence[int]) -> list[tuple[int, int]]:
    """Return the first row of each float and the one after its last: about as many lines in each.

    Args:
        lines: number of lines of each row.
    """
    most = -(-sum(lines) // -(-sum(lines) // MOST_LINES))
    starts, used = [0], 0
    for place, count in enumerate(lines):
        if used and used + count > most:
            starts.append(place)
            used = 0
        used += count
    return list(zip(starts, [*starts[1:], len(lines)], strict=True))


SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\symbol{34}", "`": r"\symbol{96}", "'": r"\symbol{39}",
    "-": "-{}", ",": ",{}", "[": "{[}", "]": "{]}", "*": "{*}", "?": "?{}", "!": "!{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}", "œ": r"\oe{}", "Œ": r"\OE{}", "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}",
    "Ł": r"\L{}", "\u0131": r"\i{}", "\u00d7": r"$\times$", "±": r"$\pm$", "\u2212": "$-$", "·": r"$\cdot$",
    "≤": r"$\leq$",
    "≥": r"$\geq$", "→": r"$\to$", "∞": r"$\infty$", "°": r"$^\circ$", "µ": r"$\mu$", "\u2013": "--", "—": "---",
    "\u2018": r"\symbol{96}", "\u2019": r"\symbol{39}", "“": "``", "”": "''", "…": r"\dots{}", "‖": r"$\|$",
}  # fmt: skip
"""Characters that TeX reads as more than themselves, or sets by a command; ligatures are kept apart."""
ACCENTS = {
    "\u0300": "`", "\u0301": "'", "\u0302": "^", "\u0303": "~", "\u0304": "=", "\u0306": "u", "\u0307": ".",
    "\u0308": '"', "\u030a": "r", "\u030b": "H", "\u030c": "v", "\u0327": "c",
}  # fmt: skip
"""Commands of accents that every font encoding has, by their combining characters."""
GREEK = {
    "small": "alpha beta gamma delta epsilon zeta eta theta iota kappa lamda mu nu xi pi rho sigma tau upsilon phi chi "
    "psi omega".split(),
    "capital": "gamma delta theta lamda xi pi sigma upsilon phi psi omega".split(),
}
"""Letters for which TeX has commands, as Unicode spells their names."""
WORD = 8
"""Longest word without a possible end of line, and distance of such ends in a long piece of a word."""
PIECE = 16
"""Longest piece of a word without a possible end of line."""
BREAK = r"\kdbreak{}"


def escape(text: str) -> str:
    """Return text that pdflatex prints as it is. Lines may also end within long words, as at `temperature=` `2.0`.

    A character that its usual fonts lack is printed by its number: [U+1F600].
    """
    return " ".join(escape_word(word) for word in text.split())


def escape_prose(text: str) -> str:
    """Return a sentence that pdflatex prints as it is, with the usual ends of lines."""
    return "".join(map(escape_character, text))


def escape_word(word: str) -> str:
    """Return a word, in which lines may end after `=`, `_`, `-` and `/`."""
    pieces = [word] if len(word) <= WORD else re.findall(r"[^=_/-]*[=_/-]+|[^=_/-]+", word)
    return BREAK.join(map(escape_piece, pieces))


def escape_piece(piece: str) -> str:
    """Return a piece of a word, in which lines may end after numbers of characters, and within if it is long."""
    parts, since = [], 0
    for place, character in enumerate(piece, 1):
        parts.append(escape_character(character))
        since += 1
        is_end = parts[-1].startswith("{[}U+") or (since == WORD and len(piece) > PIECE)
        if is_end and place < len(piece):
            parts.append(BREAK)
            since = 0
    return "".join(parts)


def escape_character(character: str) -> str:
    """Return one character as TeX."""
    if character in SPECIAL:
        return SPECIAL[character]
    if character.isascii() and character.isprintable():
        return character
    base, *accents = list(unicodedata.normalize("NFD", character))
    if base.isascii() and base.isalpha() and len(accents) == 1 and accents[0] in ACCENTS:
        return f"\\{ACCENTS[accents[0]]}{{{base}}}"
    alphabet, *kind = unicodedata.name(character, "").lower().split() or [""]
    if alphabet == "greek" and len(kind) == 3 and kind[2] in GREEK.get(kind[0], ()):
        name = kind[2].replace("lamda", "lambda")
        return f"$\\{name if kind[0] == 'small' else name.capitalize()}$"
    return f"{{[}}U+{ord(character):04X}{{]}}"
