"""CUDA sources of gpucal, shipped as package data (importable as ``gpucal.kernels``)."""
