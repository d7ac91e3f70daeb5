"""The benchmark of a CUDA device: ``python -m bench --device cuda``."""
