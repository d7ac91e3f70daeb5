"""Only what pyproject.toml can't say: the extension modules, and kernels/ -> gwf_fast.kernels."""

from setuptools import find_packages, setup

packages = (
    find_packages(include=["gwf_fast", "gwf_fast.*"])
    + ["gwf_fast.kernels"]
    + [f"gwf_fast.kernels.{p}" for p in find_packages("kernels")]
)

setup(packages=packages, package_dir={"gwf_fast.kernels": "kernels"})
