"""What -P names: files of scores, by patterns and lists, and a protocol's list of pairs."""

import glob
from pathlib import Path

import numpy as np

from bct.command import refuse_to_replace
from bct.errors import BctError
from tools.ijbc.protocol import integer_table
from tools.ijbc.report import files_of


def expanded(words: list[str]) -> list[Path]:
    """The files that words name: each a path, or paths and patterns with commas between them.

    Raises BctError for a pattern that no file fits, and for words that name nothing.
    """
    found: list[Path] = []
    for word in words:
        for part in [word] if Path(word).exists() else filter(None, word.split(",")):
            if Path(part).exists() or not glob.has_magic(part):
                found.append(Path(part))  # one that is not there is refused where it is read
            elif files := sorted(glob.glob(part)):
                found += map(Path, files)
            else:
                raise BctError(f"no file fits {part}", "look for the scores: eval/ijbc.py -m ...")
    if not found:
        raise BctError(f"{' '.join(words)!r} names no file", "give paths of saved scores")
    return list(dict.fromkeys(found))


def scores_and_labels(files: list[Path]) -> tuple[list[Path], np.ndarray | None]:
    """The files of scores, and which pairs are genuine, bool (P,), if one file is a list of pairs.

    Such a list is ijbc_template_pair_label.txt or in its form: lines `template1 template2 0|1`.

    Raises BctError for two lists, none but lists, and labels that are not 0 or 1.
    """
    lists = [file for file in files if _lists_pairs(file)]
    rest = [file for file in files if file not in lists]
    if len(lists) > 1:
        raise BctError(f"{lists[0]} and {lists[1]} both are lists of pairs", "give one of them")
    if not rest:
        raise BctError(f"{files[0]} is a list of pairs, without scores", "give scores to draw, too")
    if not lists:
        return rest, None
    label = integer_table(lists[0], columns=(2,), delimiter=None)[:, 0]
    if not np.isin(label, (0, 1)).all():
        row = int(np.argmin(np.isin(label, (0, 1))))
        raise BctError(
            f"{lists[0]}, line {row + 1}: label {label[row]} is neither 0 nor 1", "restore the file"
        )
    return rest, label == 1


def _lists_pairs(file: Path) -> bool:
    if file.suffix != ".txt" or not file.is_file():
        return False
    with open(file, "rb") as lines:
        return len(lines.readline(1000).split()) == 3


def refuse_to_replace_curves(target: Path, made_from: dict) -> None:
    """As bct.command.refuse_to_replace, and for files that no <target>.json is there to explain."""
    refuse_to_replace(target, made_from)
    record, *others = files_of(target)
    for file in others if not record.is_file() else ():
        if file.is_file():
            raise BctError(
                f"{file} is there, and no {record.name} says from what",
                "give another folder, -o, or --overwrite",
            )
