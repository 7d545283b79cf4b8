"""Add the extension module to the distribution if its source compiles here; otherwise the wheel has Python only."""

import sys
import tempfile
from distutils.ccompiler import new_compiler
from distutils.errors import CCompilerError, DistutilsError
from distutils.sysconfig import customize_compiler, get_python_inc

from setuptools import Extension, setup

SOURCE = "gateway/connection/native/_sends.c"


def compiles() -> bool:
    compiler = new_compiler()
    customize_compiler(compiler)
    with tempfile.TemporaryDirectory() as place:
        try:
            compiler.compile([SOURCE], output_dir=place, include_dirs=[get_python_inc()])
        except (CCompilerError, DistutilsError):
            return False
    return True


if sys.platform == "linux" and compiles():
    name = "snorky.gateway.connection.native._sends"
    setup(
        ext_modules=[Extension(name, [SOURCE], optional=True, py_limited_api=True)],
        options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for 3.11 and all later versions
    )
else:
    setup()
