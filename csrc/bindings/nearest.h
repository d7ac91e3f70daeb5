// The nearest neighbours of gwf_fast._cpu.
#pragma once
#include <pybind11/pybind11.h>

namespace gwf {

// instruction_set: the name of the one in use, asked at every call.
void bind_nearest(pybind11::module_& m, const char* (*instruction_set)());

}  // namespace gwf
