"""Generates the stubs (package rlhf.v1) from ../../proto beside the sources, then builds as pyproject.toml says."""
import pathlib
import subprocess
import sys

from setuptools import find_namespace_packages, setup

HERE = pathlib.Path(__file__).resolve().parent
PROTO = HERE.parent.parent / "proto"


def generate_stubs() -> None:
    sources = sorted(str(path.relative_to(PROTO)) for path in PROTO.glob("rlhf/v1/*.proto"))
    if not sources:
        return  # an unpacked source distribution: the stubs are in it
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"--python_out={HERE}", f"--pyi_out={HERE}",
               f"--grpc_python_out={HERE}"]
    subprocess.run(command + sources, check=True, cwd=PROTO)


generate_stubs()
setup(packages=find_namespace_packages(include=["rlhf_client", "rlhf.*"]), package_data={"rlhf_client": ["py.typed"], "rlhf.v1": ["*.pyi"]})
