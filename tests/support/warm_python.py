"""An interpreter and a torchrun for scripts of runs/, whose processes start in tenths of a second.

Their scripts run in processes forked from one that has imported torch, as support.script does it;
whatever else they are given (`python -c ...`) goes to the real interpreter.
"""

import contextlib
import json
import socket
import socketserver
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from support.script import run_script

CLIENT = r"""#!{python} -SE
import json, os, socket, sys

here, name = os.path.split(os.path.abspath(sys.argv[0]))
words, ranks = sys.argv[1:], 1
while name == "torchrun" and words and words[0].startswith("--"):
    option, _, value = words.pop(0).partition("=")
    ranks = int(value) if option == "--nproc_per_node" else ranks
if not (words and words[0].endswith(".py")):
    os.execv("{python}", ["{python}", *words])
words[0] = os.path.abspath(words[0])
server = socket.socket(socket.AF_UNIX)
server.connect(here + "/socket")
said = dict(words=words, ranks=ranks, cwd=os.getcwd(), env=dict(os.environ))
server.sendall(json.dumps(said).encode() + b"\n")
code, out, err = json.load(server.makefile())
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(code if code >= 0 else 128 - code)
"""


class _Call(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        said = json.loads(self.rfile.readline())
        script, *words = said.pop("words")
        done = run_script(script, *words, **said)
        answer = done.returncode, done.stdout, done.stderr
        with contextlib.suppress(BrokenPipeError):
            self.wfile.write(json.dumps(answer).encode())


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64


@contextlib.contextmanager
def warm_python() -> Iterator[str]:
    """Path of such an interpreter; its torchrun lies beside it."""
    assert hasattr(socket, "AF_UNIX")
    with tempfile.TemporaryDirectory() as folder:
        for name in ("python", "torchrun"):
            file = Path(folder, name)
            file.write_text(CLIENT.replace("{python}", sys.executable))
            file.chmod(0o755)
        with _Server(f"{folder}/socket", _Call) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            yield f"{folder}/python"
            server.shutdown()
