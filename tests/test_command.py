"""What all command lines share: how they refuse, how they end, and names that are no plain text."""

import os
import subprocess
import sys

import pytest
from support.script import run_script

from bct import markdown
from bct.command import Parser, batch, file_path, positive, rate, some_text, words, workers
from bct.errors import printable
from bct.files import ROOT

SCRIPTS = [str(file.relative_to(ROOT)) for folder in ("eval", "tools")
           for file in sorted((ROOT / folder).glob("*.py")) if file.stem != "__init__"]  # fmt: skip
ODD = "a|b\nc\x1b[31m\u202e\udcff"


def ends(body, shell="{}", **environment):
    """A command's end: `body` is the main function's. Light, so that a new Python does."""
    program = (
        f"import os, sys\nfrom bct.command import run_cli\ndef main():\n {body}\nrun_cli(main)"
    )
    command = shell.format(f'"{sys.executable}" -c "$PROGRAM"')
    env = {**os.environ, "PROGRAM": program, **environment}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, env=env, capture_output=True
    )  # fmt: skip


@pytest.mark.parametrize("script", ["train_old.py", "methods/BCT/train.py", *SCRIPTS])
def test_help_is_there_and_nonsense_is_refused_in_two_lines(script):
    helped = run_script(script, "--help")
    assert helped.returncode == 0 and "usage:" in helped.stdout and helped.stderr == ""
    done = run_script(script, "--no-such-flag", ODD.replace("\udcff", ""))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("  -> ")
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        (positive, {"3": 3}, ["0", "-3", "1.5", "x", "", "nan", "True", "9" * 5000]),
        (batch, {"1": 1}, ["0", "-3", "1000000000"]),
        (workers, {"0": 0}, ["-1", "100000"]),
        (rate, {"1e-4": 1e-4}, ["0", "1", "nan", "inf", "-inf", "-1", "2", "x", "1e999", "None"]),
        (some_text, {"20240101": "20240101"}, ["", " "]),
        (file_path, {".": file_path(".")}, [""]),
        (words, {"torchrun '-n 8'": ["torchrun", "-n 8"]}, ["", "'", '"a']),
    ],
)
def test_types_of_options(kind, good, bad, capsys):
    parser = Parser("about")
    parser.add_argument("-x", type=kind)
    for text, value in good.items():
        assert parser.parse_args([f"-x={text}"]).x == value
    for text in bad:
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args([f"-x={text}"])
        first, second = capsys.readouterr().err.splitlines()
        assert first.startswith("error: argument -x: it can't be") and len(first) < 150
        assert second.startswith("  -> ") and "--help" not in second


def test_other_ranks_do_not_repeat_what_the_first_one_says(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit, match="2"):
        Parser("about").parse_args(["x"])
    assert capsys.readouterr().err == ""


def test_a_reader_that_has_gone_is_no_error():
    for body in ("[print('x' * 99) for _ in range(9999)]", "print('x' * 99999); sys.exit(0)"):
        done = ends(body, "{} | head -c 1")
        assert done.returncode == 141 and done.stderr == b"", done.stderr


def test_a_full_disk_behind_stdout_is_told_once():
    done = ends("print('x')", "{} > /dev/full")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 2 and b"No space left" in done.stderr


def test_no_stdout_at_all():
    assert ends("print('x')", "{} >&-").returncode == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("bytearray(1 << 60)", b"not enough memory"),
        ("import torch; torch.empty(1 << 58)", b"not enough memory"),
        ("open('no/such\\n\\x1b[31mfile')", b"No such file"),
        ("open(b'\\xff\\n')", b"No such file"),
        ("from bct.errors import BctError; raise BctError('a\\n\\x1b[31mb', 'c\\rd')", b"-> c\\rd"),
    ],
)
def test_errors_take_two_lines_whatever_they_name(body, words):
    done = ends(body)
    assert done.returncode == 1 and words in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 2 and b"\x1b" not in done.stderr


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_prints_show_what_a_terminal_would_take_for_orders(encoding):
    done = ends(r"print('caf\xe9 \x1b[2J \udcff')", PYTHONIOENCODING=encoding)
    shown = "caf\xe9" if encoding == "utf-8" else r"caf\xe9"
    assert (
        done.returncode == 0 and done.stdout.decode(encoding) == shown + r" \x1b[2J \udcff" + "\n"
    )


def test_ctrl_c_ends_with_130():
    done = ends("raise KeyboardInterrupt")
    assert done.returncode == 130 and done.stderr == b""


@pytest.mark.parametrize("padded", [False, True])
def test_tables_hold_any_name(padded):
    lines = markdown.table(["", ODD], [[ODD, "1"], ["b", "2"]], padded).splitlines()
    assert len(lines) == 4 and all(line.isprintable() for line in lines)
    assert {line.replace(r"\|", "").count("|") for line in lines} == {3}
    assert printable("caf\xe9 \u4eba") == "caf\xe9 \u4eba"


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("eval/report.py", "-m a -m_old b --search x --far 1e-3"),
        ("eval/report.py", "-m a -m_old b --set x -s IJBB"),
        ("eval/report.py", "-m a -m_old b --images x --gallery y"),
        ("eval/ijbc.py", "-P a.npz -B"),
        ("eval/ijbc.py", "-P a.npz --save_result b.npz"),
        ("eval/ijbc.py", "-P a.npz --far 2"),
        ("eval/retrieval.py", "-m a --data x --leave-one-out --size 1000000000"),
        ("eval/retrieval.py", "-m a --data x --leave-one-out --size 0"),
        ("eval/retrieval.py", "-m a --data x --leave-one-out -b -3"),
        ("eval/verification.py", "-m a --set x -j -1"),
        ("eval/verification.py", "-m a --set x -o="),
        ("eval/verification.py", "-m a --set x -m_old="),
        ("tools/denoise.py", "--SD x_class70 --T nan"),
        ("tools/split_dataset.py", "x --ratio 100"),
        ("tools/check_rec.py", "x -j 100000"),
        ("eval/report.py", "-m a -m_old b --set x --gallery-size 0"),
    ],
)
def test_options_that_can_not_be_are_refused_before_anything_is_read(script, words):
    done = run_script(script, *words.split())
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 2, done.stderr
