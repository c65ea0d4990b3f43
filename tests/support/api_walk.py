"""Runs docs/api.md where the demo has not been: a folder like its own, with untrained models."""

import doctest
import json
import pickle
import re
from pathlib import Path

import torch

from backbones import get_model
from support.pictures import jpeg, write_faces

MODELS = ("demo_w16_softmax_class30", "demo_w16_MixBCT", "demo_w16_arc_class70")


def demo_folder(folder: Path) -> None:
    """Models and data under the names that `make demo` uses, as few as the walk can do with."""

    for seed, name in enumerate(MODELS):
        torch.manual_seed(seed)
        (folder / name).mkdir(parents=True)
        torch.save(get_model("demo_w16", 64).state_dict(), folder / name / "model.pt")
        (folder / name / "model.json").write_text(json.dumps({"network": "demo_w16"}))
    (folder / "data").mkdir()
    same = [True, False] * 20
    images = [jpeg(i if s else i + 100 * k, k) for i, s in enumerate(same) for k in (0, 1)]
    (folder / "data" / "demo.bin").write_bytes(pickle.dumps((images, same)))
    write_faces(folder / "data" / "train_part_30_class.rec", [3, 4, 2])


class _Shape(doctest.OutputChecker):
    """Lets figures and judgements be others: these are a matter of the models."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return super().check_output(_shape(want), _shape(got), optionflags)


def _shape(text: str) -> str:
    text = re.sub(r"\b(True|False)\b", "JUDGED", text)
    text = re.sub(r"\b[0-9a-f]{12}\b", "HASH", text)
    text = re.sub(r"(not )?compatible at", "JUDGED at", text)
    text = re.sub(r"'(deploy now|backfill first|do not)'", "DECIDED", text)
    return re.sub(r"[-+]?\b\d+(\.\d+)?\b", "N", text)


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
