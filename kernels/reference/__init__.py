"""The meaning that every backend is held to: plain PyTorch, in chunks."""
