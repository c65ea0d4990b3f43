"""Runs docs/api.md and looks whether it gives what it says. Imports nothing of ours."""

import doctest
import re
from pathlib import Path


class _Shape(doctest.OutputChecker):
    """Lets figures and judgements be others: these are a matter of the models."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(_shape(want), _shape(got), optionflags)


def _shape(text: str) -> str:
    text = re.sub(r"\b(True|False)\b", "JUDGED", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "HASH", text)
    text = re.sub(r"(not )?compatible at", "JUDGED at", text.replace(", a tie", ""))
    text = re.sub(r"^[^(\n]+ \((JUDGED at .*)\)$", r"\1", text, flags=re.MULTILINE)  # a remark
    text = re.sub(r"'(deploy now|tie|backfill first|do not|no verdict)'", "DECIDED", text)
    return re.sub(r"[-+]?\b\d+(\.\d+)?\b|\bNone\b", "N", text)


def failures(page: Path, without: str = "nothing") -> int:
    """How many lines of the page do not give what they say, figures aside.

    Args:
        without: a word; lines with it are left out.
    """
    text = page.read_text(encoding="utf-8")
    walk = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    walk.examples = [example for example in walk.examples if without not in example.source]
    assert len(walk.examples) > 20
    flags = doctest.NORMALIZE_WHITESPACE
    return doctest.DocTestRunner(_Shape(), optionflags=flags).run(walk).failed
