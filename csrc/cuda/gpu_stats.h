// Counts tensors in a GPU's memory where they lie: one launch a tensor, behind what made it, on its
// own stream. Launching neither waits, nor allocates, nor calls a library; results arrive in pinned
// memory and are taken from there behind the GPU. Kernels may be launched into a stream that is
// being captured; every replay of the graph then leaves a result.
//
// One of these for each device. Calls of launch() by one thread at a time, and calls of take() by
// one thread at a time. What kernels of a captured graph point to must stay as long as the graph,
// which nobody tells us of, so neither memory nor module is ever given back.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/exp_histogram.h"
#include "core/float_bits.h"
#include "cuda/driver_api.h"
#include "cuda/stats_block.h"
#include "cuda/stats_plan.h"
#include "cuda/tagged_reader.h"

namespace pertoken::cuda {

// What one launch, or one replay of it, has counted.
struct StatsResult {
  struct Filled {
    uint16_t slot;
    uint32_t count;
  };

  uint32_t launch = 0;  // as launch() was told
  uint64_t replay = 0;  // of the captured graph, from 1; 0 outside graphs
  std::vector<Filled> slots{};
  double sum = 0;
  double sum_sq = 0;
  float min = 0;
  float max = 0;

  // Throws std::invalid_argument for a scale above kSlotScale, or out of range.
  ExpHistogram histogram(int scale, uint64_t repeats) const;
};

struct StatsLosses {
  uint64_t no_workspace = 0;  // more streams and captures than there is room for
  uint64_t not_launched = 0;  // the driver refused
  uint64_t lost = 0;          // overwritten before they were taken, or cut off
  uint64_t discarded = 0;     // switched while the kernel ran
};

class GpuStats {
 public:
  // Records that may wait to be taken; 36 KB each.
  static constexpr uint32_t kRecordsLog2 = 6;
  // Streams, and captures on them, that have launched so far.
  static constexpr size_t kWorkspaces = 64;

  // With the device's context current. Nothing, with a reason for people, where that fails.
  static std::unique_ptr<GpuStats> make(const DriverApi& api, std::span<const std::byte> image,
                                        std::string& reason);
  GpuStats(const GpuStats&) = delete;
  GpuStats& operator=(const GpuStats&) = delete;

  int multiprocessors() const noexcept { return multiprocessors_; }

  // The hot path. CUDA_SUCCESS, also for a tensor without values, for which nothing is launched;
  // else the launch is counted in losses(). `launch` comes back with the result. `replay` is null
  // outside captures.
  CUresult launch(const StatsPlan& plan, FloatFormat format, CUstream stream, uint32_t launch,
                  const ReplayState* replay = nullptr) noexcept;

  // The next result, false where there is none yet.
  bool take(StatsResult& result);

  StatsLosses losses() const noexcept;

 private:
  struct Owner {
    unsigned long long stream;
    unsigned long long capture;
    bool operator==(const Owner&) const = default;
  };

  explicit GpuStats(const DriverApi& api) noexcept : api_(api) {}
  CUresult set_up(std::span<const std::byte> image);
  CUresult find_workspace(CUstream stream, StatsWorkspace*& workspace) noexcept;

  const DriverApi& api_;
  int multiprocessors_ = 0;
  std::array<CUfunction, kFloatFormats> functions_{};
  StatsWorkspace* workspaces_ = nullptr;  // in device memory
  std::array<Owner, kWorkspaces> owners_{};
  size_t owned_ = 0;
  DeviceRing ring_{};
  std::unique_ptr<TaggedReader> reader_;
  // Written by the thread that launches, read by others: relaxed, since they are counts alone.
  std::atomic<uint64_t> no_workspace_{0};
  std::atomic<uint64_t> not_launched_{0};
  uint64_t discarded_ = 0;
};

}  // namespace pertoken::cuda
