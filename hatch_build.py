"""Builds wheels with the modules of the hot path compiled by mypyc, where that is asked for.

    HATCH_BUILD_HOOKS_ENABLE=1 pip install '.[server]'

Which modules is in `pyproject.toml`. All happens in a copy: nothing compiled is left in the source,
where Python would take it for what is beside it. (hatch-mypyc does it in place, and can't have
packages in two folders.)
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from shutil import copytree
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

# Compiled code hands exceptions on to what it awaits with `throw(type, value, traceback)`, which
# Python deprecates from 3.12 on (https://github.com/mypyc/mypyc/issues/1214). The call is in a file
# of mypyc's runtime that the generated C includes: it is given a mended copy of that.
_SETUP = """
from pathlib import Path

import mypyc
from mypyc.build import mypycify
from setuptools import setup

extensions = mypycify({arguments}, group_name="ycore")
runtime = Path(mypyc.__file__).parent / "lib-rt" / "misc_ops.c"
deprecated = "PyObject_CallFunctionObjArgs(_m, type, value, traceback, NULL)"
mended = runtime.read_text().replace(deprecated, "PyObject_CallOneArg(_m, value)")
Path("build", runtime.name).write_text(mended)
for extension in extensions:
    extension.include_dirs.insert(0, "build")
setup(name="ycore", packages=[], ext_modules=extensions)
"""


class CompiledBuildHook(BuildHookInterface):  # type: ignore[type-arg]
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise RuntimeError("an editable install runs the source as it is: nothing is compiled")
        self._copy = TemporaryDirectory()
        root = Path(self._copy.name)
        for package in self.build_config.packages:
            copytree(Path(self.root, package), root / Path(package).name)
        arguments = ["--ignore-missing-imports", *self.config["modules"]]
        (root / "setup.py").write_text(_SETUP.format(arguments=arguments))
        build = [sys.executable, "setup.py", "build_ext", "--inplace"]
        done = subprocess.run(build, cwd=root, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"mypyc failed:\n{done.stdout}\n{done.stderr}")
        for library in [*root.rglob("*.so"), *root.rglob("*.pyd")]:
            name = library.relative_to(root)
            if name.parts[0] != "build":
                build_data["force_include"][str(library)] = name.as_posix()
        build_data["pure_python"] = False
        build_data["infer_tag"] = True

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self._copy.cleanup()
