"""The fuzzer: every public function of tensors, with drawn arguments in drawn modes, against dense float64.

`python -m tests.fuzz` draws calls and has them made in subprocesses, under a watchdog; `table*.py` say what the public
functions are, `dense*.py` what is right, `judge.py` what rounding may do to it.
"""
