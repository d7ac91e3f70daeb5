"""Kernel code in Python's kernel languages, shipped as ``gwf_fast.kernels``.

Each backend module offers the same functions with the same meaning (see ``reference/pairs.py``, which is
what every other backend is held to).
"""
