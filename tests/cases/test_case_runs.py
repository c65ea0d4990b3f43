"""Runs that lost something, mixed their files or trained nothing: the cases of a user's folder."""

import ctypes
import json
import multiprocessing
import os
import shutil
import zipfile

import pytest
import torch
from support.pictures import write_faces
from support.tiny import assert_same_run, stopping_at

from bct.errors import BctError
from bct.files import sha256_file
from bct.method import Method
from bct.train import train
from bct.training.checkpoint import checkpoints
from bct.training.run_folder import prepared_output

CPU = torch.device("cpu")
PRECIOUS = [
    *("checkpoints/my_thesis.ckpt", "checkpoints/step_00000004.pt", "tensorboard/y"),
    *("tensorboard/events.out.tfevents.1.host.2.0", "training.log", "metrics.jsonl", "best.pt"),
    *("best.json", "model.pt", "model.json", "config.py", "bad_records.txt", "run.json"),
    *("nonfinite_rank3.json", "checkpoints/of/others"),
]


def snapshot(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("leave", [[], ["resume=True"], ["overwrite=True"]], ids=str)
@pytest.mark.parametrize("name", PRECIOUS)
def test_a_foreign_file_stays(job, name, leave):
    """r_01"""
    file = job.output / name
    file.parent.mkdir(parents=True)
    file.write_text("precious")
    with pytest.raises(BctError, match=r"not from this program|not valid JSON"):
        train(job("num_epoch=1", *leave), Method, CPU)
    assert snapshot(job.output) == {file.relative_to(job.output): b"precious"}


@pytest.mark.parametrize("name", ["checkpoints/my_thesis.ckpt", "tensorboard/y", "notes.txt"])
def test_a_foreign_file_beside_a_run_of_ours_stays(job, name):
    train(job("num_epoch=1"), Method, CPU)
    (job.output / name).write_text("precious")
    before = snapshot(job.output)
    if name == "notes.txt":  # nothing of ours is called so
        assert train(job("num_epoch=1", "overwrite=True"), Method, CPU) == 0
        assert (job.output / name).read_text() == "precious"
        return
    with pytest.raises(BctError, match="not from this program"):
        train(job("num_epoch=1", "overwrite=True"), Method, CPU)
    assert snapshot(job.output) == before


@pytest.mark.parametrize("how", ["gradient_acc=8", "gradient_acc=3"])
def test_a_run_of_no_step_is_refused_before_the_old_one_is_touched(job, how):
    """r_02; the job has 2 batches per epoch"""
    train(job("num_epoch=1"), Method, CPU)
    before = snapshot(job.output)
    with pytest.raises(BctError, match=rf"{how[-1]} batches per epoch, there are 2"):
        train(job("num_epoch=1", how, "overwrite=True"), Method, CPU)
    assert snapshot(job.output) == before


def test_one_image_per_process_is_refused_before_the_old_run_is_touched(job):
    """5"""
    train(job("num_epoch=1"), Method, CPU)
    before = snapshot(job.output)
    with pytest.raises(BctError, match="batch_size = 1: batch norm needs two images per process"):
        train(job("num_epoch=1", "batch_size=1", "overwrite=True"), Method, CPU)
    assert snapshot(job.output) == before


@pytest.mark.parametrize("size", [32, 64])
def test_one_image_per_process_where_it_has_one_value_per_channel(job, size):
    """5: the last maps of a ResNet are of 1 or 2 x 2 pixels."""
    one = "batch_size=1", "network=resnet18", "pixels=imagenet", f"image_size={size}", "num_epoch=1"
    if size == 64:
        assert train(job(*one), Method, CPU) == 0
        return
    with pytest.raises(BctError, match="batch norm needs two images per process"):
        train(job(*one), Method, CPU)
    assert not job.output.exists()


def test_one_image_per_process_with_statistics_that_are_kept(job):
    assert train(job("batch_size=1", "num_epoch=1", "freeze_statistics_at=0"), Method, CPU) == 0


DAMAGED = [
    *("", "{", "{}", "[]", "null", "7", '"text"', '{"identity": []}', '{"identity": null}'),
    *(
        '{"identity": {}, "finished": "no"}',
        '{"by": "other", "identity": {}, "finished": true}',
        None,
    ),
]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_record_loses_no_checkpoint(job, tmp_path, content):
    """r_03"""
    whole = job("num_epoch=2", "save_every=1", f"output={tmp_path / 'whole'}")
    assert train(whole, Method, CPU) == 0
    train(job("num_epoch=2", "save_every=1"), stopping_at(Method, 3), CPU)
    record = job.output / "run.json"
    record.unlink()
    if content is not None:
        record.write_text(content)
    before = snapshot(job.output)
    for leave in ([], ["overwrite=True"], ["resume=True", "lr=0.05"]):
        with pytest.raises(BctError, match="checkpoints beside it are intact") as refusal:
            train(job("num_epoch=2", "save_every=1", *leave), Method, CPU)
        assert "delete" not in refusal.value.do and "overwrite" not in refusal.value.do
        assert snapshot(job.output) == before
    assert train(job("num_epoch=2", "save_every=1", "resume=True"), Method, CPU) == 0
    assert_same_run(job.output, tmp_path / "whole")
    if content is not None:
        assert (job.output / "run.json.damaged").read_text() == content


def test_a_damaged_log_decides_nothing(job, tmp_path, caplog):
    train(job(f"output={tmp_path / 'whole'}"), Method, CPU)
    train(job(), stopping_at(Method, 2), CPU)
    log = job.output / "metrics.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b'{"step": 1, "lo\n\xff\xfe\n[]\n' + b"".join(lines) + b'{"step": 1, "loss')
    assert train(job("resume=True"), Method, CPU) == 0
    assert "3 damaged lines" in caplog.text
    assert_same_run(job.output, tmp_path / "whole")
    assert all("step" in json.loads(line) for line in log.read_text().splitlines())


def test_checkpoints_on_another_disk(job, tmp_path):
    """r_04"""
    job.output.mkdir()
    (tmp_path / "big").mkdir()
    (job.output / "checkpoints").symlink_to(tmp_path / "big")
    train(job("num_epoch=4"), Method, CPU)
    first = {file.name for file in checkpoints(job.output)}
    again = ["num_epoch=4", "lr=0.001", "keep_checkpoints=1"]
    train(job(*again, "overwrite=True"), stopping_at(Method, 3), CPU)
    assert [file.name for file in checkpoints(job.output)] == ["step_00000003.pt"]
    assert "step_00000003.pt" not in first
    assert train(job(*again, "resume=True"), Method, CPU) == 0
    train(job(*again, f"output={tmp_path / 'undisturbed'}"), Method, CPU)
    assert_same_run(job.output, tmp_path / "undisturbed")


def test_two_runs_that_share_a_folder_of_checkpoints(job, tmp_path):
    (tmp_path / "big").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "checkpoints").symlink_to(tmp_path / "big")
    train(job("num_epoch=1", f"output={tmp_path / 'a'}"), Method, CPU)
    before = snapshot(tmp_path / "big")
    for leave in ([], ["overwrite=True"], ["resume=True"]):
        with pytest.raises(BctError, match="not from this program"):
            train(job("num_epoch=1", f"output={tmp_path / 'b'}", *leave), Method, CPU)
    assert snapshot(tmp_path / "big") == before


def test_a_checkpoint_that_came_from_elsewhere(job, tmp_path, caplog):
    """It has the name that this run's next one gets; it is neither believed nor replaced."""
    train(job("num_epoch=2", f"output={tmp_path / 'other'}", "lr=0.001"), Method, CPU)
    train(job(f"output={tmp_path / 'whole'}"), Method, CPU)
    train(job("save_every=1"), stopping_at(Method, 2), CPU)
    foreign = tmp_path / "other" / "checkpoints" / "step_00000004.pt"
    shutil.copy(foreign, job.output / "checkpoints")
    with pytest.raises(BctError, match="is not this run's checkpoint"):
        train(job("save_every=1", "resume=True"), Method, CPU)
    there = job.output / "checkpoints" / foreign.name
    assert there.read_bytes() == foreign.read_bytes()
    there.unlink()
    named = checkpoints(job.output)[0]
    shutil.copy(foreign, named)  # under the name of one of its own
    with pytest.raises(BctError, match=f"{named.name} is not this run's checkpoint"):
        train(job("save_every=1", "resume=True"), Method, CPU)  # from the one before
    assert "another run's checkpoint" in caplog.text
    assert named.read_bytes() == foreign.read_bytes()
    named.unlink()
    assert train(job("save_every=1", "resume=True"), Method, CPU) == 0
    assert_same_run(job.output, tmp_path / "whole")


def test_a_copy_with_a_link_to_the_same_checkpoints_is_refused(job, tmp_path):
    """cp -a copies links as they are; a folder that was moved is none."""
    (tmp_path / "big").mkdir()
    job.output.mkdir()
    (job.output / "checkpoints").symlink_to(tmp_path / "big")
    train(job(), stopping_at(Method, 3), CPU)
    copy, before = tmp_path / "copy", snapshot(tmp_path / "big")
    shutil.copytree(job.output, copy, symlinks=True)
    for leave in ("resume=True", "overwrite=True"):
        with pytest.raises(BctError, match=r"is a copy of .*, and both have one checkpoints/"):
            train(job(f"output={copy}", leave), Method, CPU)
        assert snapshot(tmp_path / "big") == before
    shutil.rmtree(job.output)
    assert train(job(f"output={copy}", "resume=True"), Method, CPU) == 0


def test_no_advice_destroys_what_is_left(job):
    train(job(), stopping_at(Method, 3), CPU)
    for file in checkpoints(job.output):
        file.unlink()
    before = snapshot(job.output)
    with pytest.raises(BctError, match="its checkpoints are gone") as refusal:
        train(job("resume=True"), Method, CPU)
    assert "overwrite" not in refusal.value.do and snapshot(job.output) == before


def test_a_second_damaged_record_is_kept_beside_the_first(job):
    train(job(), stopping_at(Method, 3), CPU)
    kept = job.output / "run.json.damaged"
    kept.write_text("precious")
    (job.output / "run.json").write_text("{")
    assert train(job("resume=True"), Method, CPU) == 0
    assert kept.read_text() == "precious"
    assert kept.with_name("run.json.damaged1").read_text() == "{"


def test_a_finished_run_is_reused_where_nothing_can_be_written(job):
    train(job("num_epoch=1"), Method, CPU)
    before = snapshot(job.output)
    job.output.chmod(0o555)

    def without_privileges():
        torch.set_num_threads(1)  # those that torch had started are not in a forked process
        libc = ctypes.CDLL(None, use_errno=True)
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert libc.capset(header, none) == 0  # root heeds permissions, too
        assert train(job("num_epoch=1", "resume=True"), Method, CPU) == 0
        with pytest.raises(PermissionError):
            train(job("num_epoch=1", "overwrite=True"), Method, CPU)

    process = multiprocessing.get_context("fork").Process(target=without_privileges)
    process.start()
    process.join()
    job.output.chmod(0o755)
    assert process.exitcode == 0 and snapshot(job.output) == before


def test_what_cannot_be_removed_is_an_error(job):
    train(job("num_epoch=1"), Method, CPU)
    (job.output / "best.pt").mkdir()  # of whomever, under a name of ours
    with pytest.raises(OSError, match=r"best\.pt"):
        train(job("num_epoch=1", "overwrite=True"), Method, CPU)


def test_a_second_run_is_kept_out(job):
    """r_05"""
    cfg = job("num_epoch=1")
    with prepared_output(cfg, {"a": 1}):
        before = snapshot(job.output)
        for leave in ([], ["resume=True"], ["overwrite=True"]):
            with pytest.raises(BctError, match=rf"process {os.getpid()} on host .* is training in"):
                train(job("num_epoch=1", *leave), Method, CPU)
        assert snapshot(job.output) == before
    assert not (job.output / "run.lock").exists()
    assert train(job("num_epoch=1", "overwrite=True"), Method, CPU) == 0


def test_without_locks_there_is_a_key(job, monkeypatch):
    def no_locks(*_):
        raise OSError(37, "No locks available")

    monkeypatch.setattr("fcntl.flock", no_locks)
    with pytest.raises(BctError, match="can't be locked: No locks available") as refusal:
        train(job("num_epoch=1"), Method, CPU)
    assert "lock=False" in refusal.value.do and not (job.output / "run.json").exists()
    monkeypatch.undo()
    assert train(job("num_epoch=1", "lock=False"), Method, CPU) == 0


@pytest.mark.parametrize("name", ["model.pt", "checkpoints/step_00000004.pt"])
def test_equal_runs_leave_equal_bytes(job, tmp_path, name):
    """r_16; a checkpoint names its run besides"""
    for run in ("one", "two"):
        train(job(f"output={tmp_path / run}"), Method, CPU)
    files = [tmp_path / run / name for run in ("one", "two")]
    if name == "model.pt":
        assert sha256_file(files[0]) == sha256_file(files[1])
    roots = {zipfile.ZipFile(file).namelist()[0].split("/")[0] for file in files}
    assert roots == {"archive"}


def test_verification_sets_may_have_their_suffix(job):
    """7"""
    with pytest.raises(BctError, match=r"/lfw\.bin"):
        train(job("val_targets=['lfw.bin']", "strict_val=True"), Method, CPU)
    assert not job.output.exists()


def test_verification_sets_of_one_name_are_refused(job, shared):
    """7"""
    folder = job.output.parent
    shutil.copy(shared / "cases/3/float_flags.bin", folder / "lfw.bin")
    with pytest.raises(BctError, match="two sets are called lfw"):
        train(job("val_targets=['lfw', 'lfw.bin']"), Method, CPU)
    assert not job.output.exists()


def test_a_record_from_before_files_were_named(job, tmp_path):
    """Runs of former versions are resumed and replaced."""
    train(job(f"output={tmp_path / 'whole'}"), Method, CPU)
    train(job(), stopping_at(Method, 2), CPU)
    record = job.output / "run.json"
    said = json.loads(record.read_text())
    record.write_text(json.dumps({k: said[k] for k in ("finished", "world_size", "identity")}))
    for file in (job.output / "tensorboard").iterdir():
        file.rename(file.with_name(file.name.partition(".run-")[0]))
    for file in checkpoints(job.output):
        saved = torch.load(file, weights_only=True)
        del saved["record"]
        torch.save(saved, file)
    assert train(job("resume=True"), Method, CPU) == 0
    assert_same_run(job.output, tmp_path / "whole")
    assert train(job("num_epoch=1", "overwrite=True"), Method, CPU) == 0
    assert [file.name for file in checkpoints(job.output)] == ["step_00000002.pt"]


@pytest.mark.parametrize("gone", [["model.pt"], ["model.pt", "run.json"]], ids=str)
def test_a_finished_run_without_its_model_gets_it_again(job, gone):
    train(job("num_epoch=1"), Method, CPU)
    before = (job.output / "model.pt").read_bytes()
    for name in gone:
        (job.output / name).unlink()
    assert train(job("num_epoch=1", "resume=True"), Method, CPU) == 0
    assert (job.output / "model.pt").read_bytes() == before


def test_a_finished_run_without_model_and_checkpoints_is_not_reused(job):
    train(job("num_epoch=1"), Method, CPU)
    for file in (job.output / "model.pt", *checkpoints(job.output)):
        file.unlink()
    with pytest.raises(BctError, match=r"a run of 2 steps, but its checkpoints are gone"):
        train(job("num_epoch=1", "resume=True"), Method, CPU)
    write_faces(job.output / "train.rec", [2])  # a file of others is no hindrance
    assert train(job("num_epoch=1", "overwrite=True"), Method, CPU) == 0
    assert (job.output / "train.rec").is_file()
