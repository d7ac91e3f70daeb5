// Calls as people usually make them, in one crossing; a part of gwf_fast._cpu.
#pragma once
#include <pybind11/pybind11.h>

#include "pairwise/pairwise.h"

namespace gwf {

// instruction_set: the one in use, asked at every call.
void bind_direct(pybind11::module_& m, const PairwiseBackend* (*instruction_set)());

}  // namespace gwf
