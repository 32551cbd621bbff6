// Where a tensor's values are there to be read: behind what is enqueued on a stream of a GPU.
#pragma once

#include "cuda/driver_api.h"

namespace pertoken::cuda {

struct GpuPlace {
  int device;
  CUstream stream;
};

}  // namespace pertoken::cuda
