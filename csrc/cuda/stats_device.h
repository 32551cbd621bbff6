// The statistics kernel on a GPU, set up: what counts for Histogram.from_values, and for
// recordings.
#pragma once

#include <cstddef>
#include <memory>
#include <span>

#include "cuda/driver_api.h"
#include "cuda/gpu_stats.h"
#include "cuda/opened_context.h"
#include "cuda/spare_devices.h"

namespace pertoken::cuda {

struct StatsDevice {
  CUcontext context;
  std::unique_ptr<GpuStats> stats;
};

// On the device with that number, whose primary context must be there, as it is where torch has a
// tensor; it is kept for good. Throws GpuFailure.
StatsDevice open_stats_device(const DriverApi& api, std::span<const std::byte> image, int ordinal,
                              uint32_t records_log2);

// Hands them out to recordings, one device to one at a time. Any thread.
class StatsDevices {
 public:
  // A ring takes 18 MB of pinned memory; there is one, more only for graphs with many results.
  static constexpr uint32_t kRecordsLog2 = 9;

  // Each device takes 8 MB of its memory, besides rings.
  StatsDevices(const DriverApi& api, std::span<const std::byte> image,
               uint32_t records_log2 = kRecordsLog2)
      : api_(api), image_(image), records_log2_(records_log2) {}

  const DriverApi& api() const noexcept { return api_; }
  // Throws GpuFailure.
  StatsDevice take(int ordinal);
  // One that works, whose results were all taken, and whose graphs are all switched off.
  void give_back(int ordinal, StatsDevice&& device);

 private:
  const DriverApi& api_;
  const std::span<const std::byte> image_;
  const uint32_t records_log2_;
  SpareDevices<StatsDevice> spare_;
};

}  // namespace pertoken::cuda
