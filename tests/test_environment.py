"""The whole job where it is awkward: C locale, odd paths, no network, data not to be touched."""

import json
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
from support.pictures import jpeg, write_faces
from support.script import run_script

from bct.files import ROOT

OFFLINE = """\
import os, socket

def refuse(real, place):
    def call(*arguments, **options):
        host = arguments[place]
        host = host[0] if isinstance(host, tuple) else host
        own = {None, "", "localhost", "127.0.0.1", "::1", socket.gethostname()}
        if not isinstance(host, (bytes, int)) and host not in own:
            with open(os.environ["ATTEMPTS"], "a") as file:
                file.write(f"{host}\\n")
            raise OSError(f"no network: {host}")
        return real(*arguments, **options)
    return call

socket.socket.connect = refuse(socket.socket.connect, 1)
socket.socket.connect_ex = refuse(socket.socket.connect_ex, 1)
socket.getaddrinfo = refuse(socket.getaddrinfo, 0)
"""
CONFIG = """\
from easydict import EasyDict
config = EasyDict(network="demo_w16", embedding_size=8, head="softmax", batch_size=4, num_epoch=1,
                  num_workers=1, amp="off", frequent=1, rec={rec!r}, feature_save={save!r},
                  output={output!r}, val_targets=["toy"])
"""


def contents(folder):
    """Everything that changes when a folder is written to."""
    paths = [folder, *sorted(folder.rglob("*"))]
    return [(path, path.stat().st_size, path.stat().st_mtime_ns) for path in paths]


def start(environment, cwd, *command):
    return subprocess.Popen(
        [sys.executable, *command], cwd=cwd, env={**os.environ, **environment},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err.decode(errors="replace")[-3000:]
    return out.decode(errors="replace")


@pytest.fixture
def house(ijb, tmp_path):
    """Data that nothing may write to, and a config, under a path with blanks and odd letters."""
    root = tmp_path / "наші обличчя, été 顔"
    data = root / "the data"
    data.mkdir(parents=True)
    write_faces(data / "train_part_30_class.rec", [4, 4])
    write_faces(data / "train_part_70_class.rec", [3, 3, 3])
    images, flags = [jpeg(i // 2, i) for i in range(40)], [True, False] * 10
    (data / "toy.bin").write_bytes(pickle.dumps((images, flags)))
    ijb.rename(data / "IJBC")
    text = CONFIG.format(rec=str(data), save=str(root / "feature save"), output=str(root / "run é"))
    (root / "old é_class30.py").write_text(text, encoding="utf-8")
    for path in [*data.rglob("*"), data]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    yield root
    for path in [data, *data.rglob("*")]:
        path.chmod(0o755 if path.is_dir() else 0o644)


# TensorBoard can't write into a folder whose name the locale has no letters for
@pytest.mark.parametrize(
    ("locale", "run"),
    [
        pytest.param("C", "a run", id="C"),
        pytest.param("C.UTF-8", "un été", id="UTF", marks=pytest.mark.slow),
    ],
)
def test_training_extraction_and_evaluation(house, tmp_path, locale, run):
    data, output, out = house / "the data", tmp_path / run, house / "out é"
    model = output / "model.pt"
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(OFFLINE)
    attempts = tmp_path / "attempts"
    path = f"{tmp_path / 'site'}{os.pathsep}{os.environ.get('PYTHONPATH', ROOT)}"
    environment = {"LC_ALL": locale, "LANG": locale, "PYTHONUTF8": "0", "ATTEMPTS": str(attempts),
                   "PYTHONPATH": path, "PYTHONCOERCECLOCALE": "0"}  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before, config = contents(data), house / "old é_class30.py"

    both = ("-m", model, "-m_old", model, "--amp", "off", "-o", out)
    protocol = ("-d", data, "--far", "1e-1", "--cache", house / "cache é", "-j", "1")
    commands = (
        ("train_old.py", config, "shard=class30", f"output={output}"),
        ("tools/extract_features.py", config, "--SD", "old é_class70", f"output={output}"),
        ("eval/verification.py", *both, "--set", data / "toy.bin"),
        ("eval/ijbc.py", *both, *protocol),
        ("eval/report.py", *both, *protocol, "--resamples", "20"),
    )
    in_turn = [word for script, *more in commands for word in (ROOT / script, *more, ";")]
    said = finish(start(environment, elsewhere, ROOT / "tests/support/in_turn.py", *in_turn))
    assert "written to" in said and run in (out / "report.html").read_text(encoding="utf-8")

    features = house / "feature save" / "OPclass" / "old é_class70_feature.npy"
    assert np.load(features).shape == (9, 8)
    manifest = json.loads(features.with_suffix(".json").read_text())
    assert os.fsencode(manifest["weights"]) == os.fsencode(model)  # one file in every locale
    assert contents(data) == before
    assert not attempts.exists(), attempts.read_text()
    assert not list(elsewhere.iterdir())


@pytest.mark.slow
def test_two_launches_at_once(house, tmp_path):
    """Each finds a port, and two that write one artefact leave a whole one."""
    config = house / "old é_class30.py"
    assert run_script("train_old.py", config, "shard=class30", cwd=tmp_path).returncode == 0
    script, *arguments = "tools/extract_features.py", config, "--SD", "old é_class70"
    torchrun = "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"
    command = ({"OMP_NUM_THREADS": "1"}, tmp_path, *torchrun, ROOT / script, *arguments)
    for process in [start(*command), start(*command)]:
        finish(process)
    assert "up to date" in run_script(script, *arguments, cwd=tmp_path).stdout
    names = [path.name for path in (house / "feature save" / "OPclass").iterdir()]
    assert len(names) == 4 and not [name for name in names if name.endswith(".tmp")]
