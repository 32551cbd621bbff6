// The context that what we launch on a GPU runs in: torch's, the primary one.
#pragma once

#include <functional>
#include <stdexcept>

#include "cuda/driver_api.h"

namespace pertoken::cuda {

// A GPU, its driver or its stream did not do what was asked.
class GpuFailure : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// Throws GpuFailure, which says `what` and the driver's own words, where a call did not succeed.
void check_call(const DriverApi& api, CUresult result, const char* what);

// The primary context of the device with that number, which must be there, as it is where torch has
// a tensor; it is kept for good where `set_up`, which runs with it current, says true. Throws
// GpuFailure.
CUcontext open_context(const DriverApi& api, int ordinal, const std::function<bool()>& set_up);

}  // namespace pertoken::cuda
