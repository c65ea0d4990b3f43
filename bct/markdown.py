"""Tables in Markdown, and figures over seeds as text."""

import statistics
from collections.abc import Sequence

import numpy as np

from bct.errors import printable


def table(titles: Sequence[str], rows: Sequence[Sequence[str]], padded: bool = False) -> str:
    """A table whose first column is text and whose others are numbers.

    Names with bars, newlines or control codes stay in their cells.

    Args:
        padded: columns are equally wide in every line, for reading it as text.
    """
    lines = [[printable(cell).replace("|", "\\|") for cell in line] for line in (titles, *rows)]
    if not padded:
        marks = [":--", *["--:"] * (len(titles) - 1)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], marks, *lines[1:]))
    widths = [max(6, *map(len, column)) for column in zip(*lines, strict=True)]
    first, *others = widths
    marks = [":".ljust(first, "-"), *("-" * (width - 1) + ":" for width in others)]
    text = [[cell.ljust(width) for cell, width in zip(lines[0], widths, strict=True)], marks]
    for row in lines[1:]:
        cells = zip(row[1:], others, strict=True)
        text.append([row[0].ljust(first), *(cell.rjust(width) for cell, width in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in text)


def spread(values: Sequence[float | None] | None) -> str:
    """Mean +- standard deviation (n - 1) over seeds; the value alone if there is one; "-" if one is
    undefined; nothing for None."""
    if values is None:
        return ""
    if None in values:
        return "-"
    if len(values) == 1:
        return f"{values[0]:.3f}"
    return f"{np.mean(values):.3f} +- {statistics.stdev(values):.3f}"
