"""Old models with all their artefacts, small enough to be made within a test run."""

import runpy
import sys
from pathlib import Path

import torch

from bct.config import load_config
from bct.files import ROOT
from bct.method import Method, load_method
from bct.train import train
from support.pictures import write_faces

CPU = torch.device("cpu")
SMALL = {"UniBCT": ["refresh_epochs=[0, 2]"], "NCCL": ["queue_size=20"], "HotRefresh": ["topk=5"]}
TRAINING = ["batch_size=8", "num_epoch=3", "frequent=1", "num_workers=0", "amp=off", "lr=0.01"]


def tool(name, *arguments):
    """Runs tools/<name>.py in this process, as its command line would."""
    before, sys.argv = sys.argv, [name, *map(str, arguments)]
    try:
        runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name="__main__")
    finally:
        sys.argv = before


def build(folder: Path) -> Path:
    """A data set of 10 identities, its shards, two softmax old models and all their artefacts."""
    write_faces(folder / "train.rec", [4, 6, 4, 4, 5, 4, 7, 4, 4, 4])
    tool("split_dataset", folder / "train.rec", "--ratio", 30)
    common = (
        "from easydict import EasyDict\nconfig = EasyDict()\nconfig.embedding_size = 16\n"
        f"config.rec = {str(folder)!r}\nconfig.network = 'demo_w32'\nconfig.amp = 'off'\n"
        f"config.feature_save = {str(folder / 'features')!r}\n"
    )
    for kind in ("class", "data"):
        name, output = f"old_{kind}30", f"config.output = {str(folder / kind)!r}\n"
        (folder / f"{name}.py").write_text(
            f"{common}{output}config.shard = '{kind}30'\nconfig.head = 'softmax'\n"
        )
        old = load_config(folder / f"{name}.py", [*TRAINING, "num_epoch=1"])
        train(old, Method, CPU)
        for shard in (f"{kind}70", f"{kind}100"):
            sd = f"old_{shard}"
            tool("extract_features", folder / f"{name}.py", "--SD", sd, "num_workers=0")
            for other in ("denoise", "average_features", "class_statistics"):
                tool(other, "--SD", sd, "--feature-save", folder / "features")
            tool("denoise", "--by", "entropy", "--T", 1, "--SD", sd,
                 "--feature-save", folder / "features")  # fmt: skip
    (folder / "new.py").write_text(common)
    return folder


def config(house, name, output, *overrides, scenario="OPclass"):
    given = [f"scenario={scenario}", f"old_config=old_{scenario[2:]}30", f"output={output}"]
    arguments = [*given, *TRAINING, *SMALL.get(name, ()), *overrides]
    return load_config(house / "new.py", arguments, load_method(name).defaults)
