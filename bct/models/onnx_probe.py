"""Tries an ONNX graph in a process of its own: one that never ends, takes all memory or brings
onnxruntime down is a file of somebody else, and must not take this process with it.

It can't show how long other images than its noise take: OnnxBackbone has a limit of its own.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from bct.errors import BctError

SECONDS = 180  # of CPU time; r2060 takes about 40 for its two images
MEMORY = 3 << 30  # bytes, beside four times the file's own
DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}
_CODE = "import sys; sys.path = {path!r}; from bct.models.onnx_probe import main; main(*{args!r})"


def probe(path: str | Path, shape: tuple[int, int], seconds: int = SECONDS) -> dict[str, Any]:
    """Opens a graph and, where it has one image for input and one output, runs it on noise of this
    height and width.

    Exporters leave graphs that declare any batch and work for one image only, or declare the
    output of one image and work for many: so what counts is what the graph does.

    Returns:
        "unreadable": why onnxruntime does not open it; or "inputs" and "outputs", a list
        [name, type, shape] each, and "metadata". Beside these, of a graph that was run, "problem":
        why it gives no embeddings; or "batch": how many images it takes at once, None for any, and
        "width": D, and "seconds" per image.

    Raises:
        BctError: it takes more than `seconds` of CPU time, or more memory than a network of its
            size, or brings onnxruntime down.
    """
    beside = Path(f"{path}.data")
    held = sum(file.stat().st_size for file in (Path(path), beside) if file.is_file())
    arguments = (str(Path(path).resolve()), shape, seconds, MEMORY + 4 * held)
    code = _CODE.format(path=sys.path, args=arguments)
    command = [sys.executable, "-I", "-c", code]
    try:
        done = subprocess.run(  # noqa: S603 - Python itself, and no shell
            command, capture_output=True, timeout=10 * seconds, check=False
        )
        return json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        problem = f"no end after {10 * seconds} s"
    except (ValueError, IndexError):
        problem = _ended(done.returncode, seconds)
    raise BctError(
        f"{path} can't be run ({problem})", "give a network of a usual kind, exported again"
    )


def _ended(code: int, seconds: int) -> str:
    if code in (-24, -9):  # SIGXCPU, SIGKILL
        return f"no end after {seconds} s of work, or too much memory"
    return f"onnxruntime ends with code {code}"


def main(path: str, shape: tuple[int, int], seconds: int, memory: int) -> None:
    """In the process: prints what probe returns, as JSON."""
    _limit(resource.RLIMIT_CPU, seconds)
    _limit(resource.RLIMIT_DATA, memory)
    _limit(resource.RLIMIT_CORE, 0)
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    try:
        session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a dozen kinds, without a common base
        found = {"unreadable": reason(error)}
    else:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        found = {
            "inputs": [[one.name, one.type, one.shape] for one in inputs],
            "outputs": [[one.name, one.type, one.shape] for one in outputs],
            "metadata": session.get_modelmeta().custom_metadata_map,
        }
        images = len(inputs) == 1 and inputs[0].type in DTYPES and len(inputs[0].shape) == 4
        if images and len(outputs) == 1 and outputs[0].type in DTYPES:
            found |= _try(session, shape)
    print(json.dumps(found), flush=True)


def _limit(which: int, most: int) -> None:
    _, hard = resource.getrlimit(which)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(which, (most, hard))


def _try(session: Any, shape: tuple[int, int]) -> dict[str, Any]:
    data = session.get_inputs()[0]
    fixed = data.shape[0] if isinstance(data.shape[0], int) else None
    problem = "it takes no image"
    for batch in (fixed,) if fixed else (2, 1):
        noise = np.random.default_rng(0).uniform(-1, 1, (batch, 3, *shape))
        began = time.perf_counter()
        try:
            out = session.run(None, {data.name: noise.astype(DTYPES[data.type])})[0]
        except Exception as error:  # as above
            problem = reason(error)
        else:
            if out.ndim == 2 and len(out) == batch and out.shape[1]:
                return {
                    "batch": batch if batch in (fixed, 1) else None,
                    "width": int(out.shape[1]),
                    "seconds": (time.perf_counter() - began) / batch,
                }
            problem = f"{batch} images give {'x'.join(map(str, out.shape)) or 'a number'}"
    return {"problem": problem}


def reason(error: Exception) -> str:
    """The first line of an error, in plain characters."""
    line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {ascii(line)[1:-1][:120]}"
