"""Packages: the rooms of gpucal/ are found, and gpucal.kernels is the folder kernels/ beside it."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["gpucal", "gpucal.*"]), "gpucal.kernels"])
