"""Scripts of eval/ as modules; they are no part of a package."""

import importlib.util
from types import ModuleType

from bct.files import ROOT


def program(name: str = "retrieval") -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"eval_{name}", ROOT / f"eval/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
