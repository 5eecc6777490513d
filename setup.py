"""The packages; pyproject.toml has the rest. The folder app/ is installed as wdecomp/app/."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["wdecomp*"]), "wdecomp.app"],
    package_dir={"wdecomp.app": "app"},
)
