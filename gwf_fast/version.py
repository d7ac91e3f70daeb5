"""The version, that of pyproject.toml; checkpoints record it."""

__version__ = "0.1.0"
