"""KeOps backend: formulas nobody wrote a kernel for."""
