"""Benchmarks: ``python -m bench --help``. Every result is checked before its time is reported."""
