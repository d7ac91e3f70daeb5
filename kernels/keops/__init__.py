"""KeOps backend: any kernel that can be written as a formula, with derivatives, compiled on first use.

Importing this package imports nothing of KeOps; see ``compile.py`` for when that happens and why it is locked.
"""
