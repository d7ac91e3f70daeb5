"""The short way of a call: from what people give to the result, in one crossing (csrc/bindings/direct.cpp)."""

from gwf_fast import _cpu
from gwf_fast.kernels.cpp import pairs as pairs  # which says it where the extension is missing

direct_function = _cpu.direct_function
scaled = _cpu.scaled
sum_vjp = _cpu.sum_vjp
use_direct = _cpu.use_direct
