"""docs/published_commands.md: each command of ours as the page has it, on tiny data.

The commands of a system run in the page's order in one folder, which holds what the page speaks of;
what makes a script cheap is appended.
"""

import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from support import tiny_sets
from support.pictures import jpeg
from support.script import run_script

from backbones import get_model
from bct.config import execute
from bct.files import ROOT

PAGE = ROOT / "docs" / "published_commands.md"
SYSTEMS = {  # our name: the page's sections, which share a folder
    "mixbct": ["MixBCT"],
    "insightface": ["insightface, arcface_torch"],
    "openbct": ["openBCT"],
    "bt2": ["BT-2 and ml-fct"],
    "advbct": ["AdvBCT", "OpenCompatible"],
}
WORDS = {"r18": "demo_w16", "r50": "demo_w16", "224": "32"}  # in place of the page's
SHORT = "num_epoch=1 warmup_epoch=0 batch_size=8 gradient_acc=1 num_workers=0 amp=off"
FACE = f"{SHORT} network=demo_w16 embedding_size=16 num_classes=None num_image=None val_targets=[]"
IMAGES = f"{SHORT} network=conv4_w32 image_size=32 lr=0.01"
CIFAR = f"{IMAGES} embedding_size=16 batch_size=32"
VIEWS = f"{SHORT} network=gem_w16 embedding_size=16 num_classes=None lr=0.01 batch_size=32"
KEYS = {  # of trainings
    "mixbct": FACE,
    "insightface": FACE,
    "openbct": IMAGES,
    "bt2": CIFAR,
    "advbct": VIEWS,
}
OF_METHOD = {"NCCL": "queue_size=20", "OpenBCT": "embedding_size=520", "BT2": "extra_dim=8"}
MAP = "num_epoch=1 warmup_epoch=0 batch_size=32 num_workers=0 embedding_size=16 hidden_size=32"
EVALUATION = "--cache cache -b 8 -j 0 --amp off"
OF_SCRIPT = {  # of the others; {} is what a training has
    "tools/split_dataset.py": "",
    "tools/extract_features.py": "{}",
    "tools/average_features.py": "--feature-save feature_save",
    "tools/denoise.py": "--feature-save feature_save",
    "tools/class_statistics.py": "--feature-save feature_save",
    "tools/convert.py": "",
    "tools/import_model.py": "--image-size 32",
    "tools/make_artefacts.py": "--model work_dirs/old num_workers=0 amp=off"
    " --model work_dirs/new num_workers=0 amp=off",
    "tools/export_onnx.py": "",
    "tools/embed.py": "-b 8 -j 0 --amp off",
    "tools/transform_gallery.py": "",
    "eval/ijbc.py": f"{EVALUATION} --far 0.1",
    "eval/retrieval.py": f"{EVALUATION} --resamples 10",
    "eval/landmarks.py": f"{EVALUATION} --resamples 10",
    "eval/reid.py": f"{EVALUATION} --resamples 10",
}
OUTPUTS = {  # where a training is, if not in work_dirs/<config>
    "cifar100_bt2_old_class50": "old",
    "cifar100_bt2_new_class100": "new",
    "cifar100_r50_to_r50_BT2": "bt2",
    "cifar100_r50_FCT": "fct",
}


def tables():
    """Section -> its rows' (their cell, our commands)."""
    found = {}
    for part in PAGE.read_text().split("\n## ")[1:]:
        title, *lines = part.splitlines()
        rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
        found[title] = [(theirs, re.findall(r"`([^`]+)`", ours)) for theirs, ours in rows[2:]]
    return found


def rows_of(system):
    known = tables()
    return [row for section in SYSTEMS[system] for row in known[section]]


class Place:
    """A folder in which the page's commands can be given, as in that of the repository."""

    def __init__(self, folder, system):
        self.folder, self.system = folder, system
        for name in ("configs", "methods"):
            (folder / name).symlink_to(ROOT / name)

    def tiny(self, command):
        """(working folder, script, words) of a command. AssertionError: it has no tiny form."""
        start, _, rest = command.rpartition(" && ")
        inside = start.removeprefix("cd ")
        program, *words = shlex.split(rest)
        while program == "torchrun" and words[0].startswith("-"):
            words.pop(0)
        assert program in ("python", "torchrun"), command
        script, words = str(Path(inside, words[0])), [WORDS.get(w, w) for w in words[1:]]
        return self.folder / inside, script, words + self.added(script, words)

    def added(self, script, words):
        """What makes a command cheap, and lets it write into this folder alone."""
        trained = script == "train_old.py" or script.startswith("methods/")
        assert trained or script in OF_SCRIPT, f"no tiny form of {script}"
        if self.system == "advbct" and (trained or script == "tools/make_artefacts.py"):
            return self.below_this_folder(script, words)
        own = "{}" if trained else OF_SCRIPT[script]
        if own != "{}":
            return own.split()
        config = Path(words[0]).stem
        method = script.split("/")[1] if script.startswith("methods/") else None
        keys = MAP if method == "FCT" else f"{KEYS[self.system]} {OF_METHOD.get(method, '')}"
        if not any(word.startswith("rec=") for word in words):
            keys += f" rec={self.folder}/dataset/ms1m-retinaface-t1"
        here = f"{self.folder}/work_dirs/{OUTPUTS.get(config, config)}"
        return [*keys.split(), f"output={here}", f"feature_save={self.folder}/feature_save"]

    def below_this_folder(self, script, words):
        """What makes a config cheap whose paths start at the repository's root."""
        said = execute(ROOT / words[0])
        size = "64,32" if "market1501" in words[0] else "32"
        paths = [f"feature_save={self.folder}/feature_save", f"rec={self.folder}/{said.rec}"]
        if said.get("old_model"):
            paths.append(f"old_model={self.folder}/{said.old_model}")
        if script != "tools/make_artefacts.py":
            output = f"output={self.folder}/work_dirs/{Path(words[0]).stem}"
            return [*VIEWS.split(), f"image_size={size}", *paths, output]
        if said.get("old_model"):
            model = [paths[-1].removeprefix("old_model="), "num_workers=0", "amp=off"]
        else:
            old = f"configs/{said.old_config}.py"
            model = [old, *self.below_this_folder("train_old.py", [old])]
        return ["--set", *paths, "--model", *model]

    def run(self, command):
        folder, script, words = self.tiny(command)
        done = run_script(script, *words, cwd=folder)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        for option, value in itertools.pairwise(words):
            if option in ("-o", "--output", "--out"):
                assert (folder / value).exists(), f"{command}: {value} is not there"
        for word in words:
            if word.startswith("output=") and script.endswith(("train.py", "train_old.py")):
                assert Path(word.removeprefix("output="), "model.pt").is_file(), command


def faces_and_networks(folder, ijb):
    tiny_sets.faces(folder / "ms1m-retinaface-t1", images=8)
    (folder / "dataset").mkdir()
    (folder / "dataset/ms1m-retinaface-t1").symlink_to(folder / "ms1m-retinaface-t1")
    (folder / "IJB_release").symlink_to(ijb.parent)
    for seed, name in enumerate(("old.pt", "new.pt", "backbone.pth")):
        torch.manual_seed(seed)
        torch.save(get_model("demo_w16", 16).state_dict(), folder / name)
    (folder / "face.jpg").write_bytes(jpeg(0, 0))


def imagenet(folder, ijb):
    """6 classes, of which openBCT's old model knows 3; networks as openBCT keeps them."""
    tiny_sets.image_folders(folder / "DIR")
    for part, classes in (("old", 3), ("new", 6)):
        lines = [f"n{c:02}/{k}.JPEG {c}\n" for c in range(classes) for k in range(4)]
        (folder / f"DIR/imgnet_train_img_list_for_{part}.txt").write_text("".join(lines))
    for seed, (name, arch) in enumerate((("old", "resnet18"), ("new", "resnet50"))):
        torch.manual_seed(seed)
        network = getattr(torchvision.models, arch)(num_classes=3)
        state = {f"module.{key}": value for key, value in network.state_dict().items()}
        saved = {"epoch": 90, "arch": arch, "state_dict": state, "best_acc1": 0.0, "optimizer": {}}
        torch.save(saved, folder / f"{name}.pth.tar")
        if name == "old":
            np.save(folder / "old_fc.npy", network.fc.weight.detach().numpy())


def cifar(folder, ijb):
    tiny_sets.cifar(folder)


def landmarks_and_people(folder, ijb):
    """GLDv2, Revisited Oxford and Market-1501 as they lie on a disk, all drawn."""
    (folder / "dataset").mkdir()
    tiny_sets.gldv2(folder / "landmarks").rename(folder / "dataset" / "GLDv2")
    tiny_sets.retrieval(folder / "revisited").rename(folder / "dataset" / "ROxfordParis")
    tiny_sets.market1501(folder / "dataset" / "Market-1501")


DATA = {
    "mixbct": faces_and_networks,
    "insightface": faces_and_networks,
    "openbct": imagenet,
    "bt2": cifar,
    "advbct": landmarks_and_people,
}


def test_every_row_has_a_tiny_form(tmp_path):
    known = tables()
    assert known.keys() == {section for sections in SYSTEMS.values() for section in sections}
    for system in SYSTEMS:
        (tmp_path / system).mkdir()
        place = Place(tmp_path / system, system)
        for theirs, commands in rows_of(system):
            assert commands, theirs
            for command in commands:
                folder, script, _ = place.tiny(command)
                assert (ROOT / script).is_file() and folder.is_dir(), command
                for word in command.split():
                    if system == "bt2" and word.endswith(".py"):  # the page says so
                        assert (ROOT / word.replace("cifar100", "imagenet")).is_file(), word


@pytest.mark.slow
@pytest.mark.parametrize("system", SYSTEMS)
def test_commands(system, tmp_path, ijb):
    folder = tmp_path / "here"
    folder.mkdir()
    DATA[system](folder, ijb)
    place = Place(folder, system)
    for _, commands in rows_of(system):
        for command in commands:
            place.run(command)
