"""gwf_fast: a compiled-kernel particle engine for generative Wasserstein flows."""
