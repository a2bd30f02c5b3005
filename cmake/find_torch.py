"""Print the folder of the torch package that the extension will run beside, or nothing.

torch is never imported: that would take seconds, and pip's isolated build environment hides it from sys.path. Its
interpreter is still the one of the target environment, so sysconfig names the folder where torch lies.
"""

import contextlib
import importlib.util
import os
import site
import sysconfig
from collections.abc import Iterator
from pathlib import Path

HEADER = "include/torch/csrc/stable/library.h"


def candidates() -> Iterator[Path]:
    if named := os.environ.get("FASTDENSE_TORCH"):
        yield Path(named)
    spec = importlib.util.find_spec("torch")
    for location in (spec and spec.submodule_search_locations) or ():
        yield Path(location)
    folders = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib"), *site.getsitepackages()]
    with contextlib.suppress(AttributeError):  # old virtualenv replaces the site module
        folders.append(site.getusersitepackages())
    if environment := os.environ.get("VIRTUAL_ENV"):
        folders.append(sysconfig.get_path("platlib", vars={"base": environment, "platbase": environment}))
    for folder in folders:
        yield Path(folder, "torch")


print(next((path for path in candidates() if (path / HEADER).is_file()), ""), end="")
