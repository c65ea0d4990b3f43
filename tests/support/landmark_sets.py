"""Sets that the shared generators draw: landmarks and people, each once for all tests."""

import subprocess
import sys
from functools import cache
from pathlib import Path
from tempfile import mkdtemp


@cache
def drawn_landmarks(shared: Path) -> Path:
    """gldv2/ and revisited/: 20 landmarks, an index of 204, 40 queries."""
    folder = shared / "data" / "landmarks"
    return _drawn(folder / "make_views.py", folder / "photos")


@cache
def drawn_people(shared: Path) -> Path:
    """In Market-1501's folders and names."""
    return _drawn(shared / "data" / "reid" / "make_people.py")


def _drawn(script: Path, *arguments: Path) -> Path:
    out = Path(mkdtemp(prefix="bct-test-"))
    subprocess.run([sys.executable, script, *arguments, out], check=True)
    return out
