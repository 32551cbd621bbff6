// The histogram of a tensor in a GPU's memory, waited for: what Histogram.from_values does. Any
// thread; one tensor at a time.
#pragma once

#include <cstddef>
#include <map>
#include <mutex>
#include <span>
#include <stdexcept>

#include "core/exp_histogram.h"
#include "core/tensor_view.h"
#include "cuda/driver_api.h"
#include "cuda/stats_device.h"

namespace pertoken::cuda {

// The kernel cannot read the tensor as it lies.
class UnreadableTensor : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

class GpuHistograms {
 public:
  GpuHistograms(const DriverApi& api, std::span<const std::byte> image)
      : api_(api), image_(image) {}

  // Counts on `stream`, behind what was enqueued there, and waits for it, without holding up other
  // streams. The device's primary context must be there, as it is where torch has a tensor. Throws
  // GpuFailure, UnreadableTensor, and as StatsResult::histogram() does.
  ExpHistogram histogram(int device, CUstream stream, const TensorView& view, int scale);

 private:
  StatsDevice& device_of(int ordinal);
  StatsResult wait(GpuStats& stats, CUstream stream);

  const DriverApi& api_;
  const std::span<const std::byte> image_;
  std::mutex mutex_;
  std::map<int, StatsDevice> devices_;
  uint32_t launch_ = 0;
};

}  // namespace pertoken::cuda
