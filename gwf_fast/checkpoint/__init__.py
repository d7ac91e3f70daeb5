"""Runs on disk: one writer, atomic, checked, no pickle."""
