// Counts tensors in a GPU's memory where they lie: one launch a tensor, behind what made it, on its
// own stream. Launching neither waits, nor allocates, nor calls a library; results arrive in pinned
// memory and are taken from there behind the GPU. Kernels may be launched into a stream that is
// being captured; every replay of the graph then leaves a result.
//
// Calls of launch() by one thread at a time, and calls of take() by one thread at a time. take()
// asks nothing of the driver. What kernels of a captured graph point to must stay as long as the
// graph: its word and workspaces serve another one once the driver says that it is gone, and
// neither memory nor module is ever given back. The memory that results arrive in is the process's
// own, so that reading it is safe even if the context is gone.
#pragma once

#include <algorithm>
#include <array>
#include <atomic>
#include <bitset>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/exp_histogram.h"
#include "core/float_bits.h"
#include "cuda/driver_api.h"
#include "cuda/graph_life.h"
#include "cuda/stats_block.h"
#include "cuda/stats_plan.h"
#include "cuda/tagged_reader.h"

namespace pertoken::cuda {

// What one launch, or one replay of it, has counted of one row.
struct StatsResult {
  struct Filled {
    uint16_t slot;
    uint32_t count;
  };

  uint32_t launch = 0;  // as launch() was told
  uint32_t row = 0;
  uint32_t ring = 0;    // that it came by
  uint32_t replay = 0;  // what the launch's word said, in a captured graph; else 0
  std::vector<Filled> slots{};
  double sum = 0;
  double sum_sq = 0;
  float min = 0;
  float max = 0;

  // Throws std::invalid_argument for a scale above kSlotScale, or out of range.
  ExpHistogram histogram(int scale, uint64_t repeats) const;
};

struct StatsLosses {
  uint64_t no_workspace = 0;  // more streams, captures and rows than there is room for
  uint64_t not_launched = 0;  // the driver refused
  uint64_t lost = 0;          // overwritten before they were taken, or cut off
  uint64_t discarded = 0;     // switched while the kernel ran
};

class GpuStats {
 public:
  // Records of a ring that may wait to be taken; 36 KB each.
  static constexpr uint32_t kRecordsLog2 = 6;
  static constexpr uint32_t kRings = 16;
  // Streams that have launched so far.
  static constexpr size_t kStreams = 64;
  // Streams in the captures of graphs that are there, each capture counted anew.
  static constexpr size_t kCaptured = 256;
  // The graphs that can be switched at once; far more, so that a word serves another graph only
  // long after the last write to it, which may be behind the graph's last replay.
  static constexpr size_t kWords = 4096;
  // Rows that are counted at once on all of them together; 30 KB each.
  static constexpr uint32_t kWorkspaces = 256;

  // With the device's context current. Nothing, with a reason for people, where that fails.
  static std::unique_ptr<GpuStats> make(const DriverApi& api, std::span<const std::byte> image,
                                        std::string& reason, uint32_t records_log2 = kRecordsLog2);
  ~GpuStats();
  GpuStats(const GpuStats&) = delete;
  GpuStats& operator=(const GpuStats&) = delete;

  int multiprocessors() const noexcept { return multiprocessors_; }
  uint64_t records() const noexcept { return uint64_t{1} << records_log2_; }
  // By the thread that launches, with the context current, also in a capture: a ring besides the
  // first, unless it is there. Cold. Throws std::bad_alloc.
  CUresult open_ring(uint32_t ring);

  // The hot path. CUDA_SUCCESS, also for a tensor without values, for which nothing is launched;
  // else the launch is counted in losses(). `launch` comes back with the result of each row.
  // `replay` is null outside captures; see StatsArgs. The results come by `ring`, which is there.
  CUresult launch(const StatsPlan& plan, FloatFormat format, CUstream stream, uint32_t launch,
                  const uint32_t* replay = nullptr, uint32_t ring = 0) noexcept;

  // By the thread that launches, cold: a word for the launches of a graph that is being captured, 0
  // at first, which it has for its life, as it has the workspaces of these launches; nullptr where
  // all are taken. Throws std::bad_alloc.
  const uint32_t* take_word(unsigned long long capture, std::shared_ptr<const GraphLife> life);
  // Whether half of what graphs take is held by such as are there still.
  bool is_worn() noexcept;

  // The next result of any ring, in the order of each; false where there is none yet.
  bool take(StatsResult& result);

  StatsLosses losses() const noexcept;

 private:
  // A stream, or a capture on one, and the workspaces that are its own.
  struct Owner {
    unsigned long long stream;
    unsigned long long capture;
    uint32_t first;
    uint32_t rows;
  };
  template <size_t Most>
  struct Owners {
    std::array<Owner, Most> all{};
    size_t count = 0;

    // nullptr where there is no room for another.
    Owner* find(unsigned long long stream, unsigned long long capture) noexcept {
      for (size_t i = 0; i < count; ++i) {
        if (all[i].stream == stream && all[i].capture == capture) return &all[i];
      }
      if (count == Most) return nullptr;
      all[count] = {stream, capture, 0, 0};
      return &all[count++];
    }
    void drop(unsigned long long capture) noexcept {
      const auto end = all.begin() + static_cast<std::ptrdiff_t>(count);
      const auto kept = std::remove_if(
          all.begin(), end, [&](const Owner& owner) { return owner.capture == capture; });
      count = static_cast<size_t>(kept - all.begin());
    }
  };

  // As the device knows it, and what reads it.
  struct ResultRing {
    DeviceRing of_device;
    TaggedReader reader;
  };

  GpuStats(const DriverApi& api, uint32_t records_log2) noexcept
      : api_(api), records_log2_(records_log2) {}
  CUresult set_up(std::span<const std::byte> image);
  bool take(ResultRing& ring, StatsResult& result);
  CUresult find_workspaces(CUstream stream, uint32_t rows, StatsWorkspace*& workspaces) noexcept;
  bool hold_workspaces(Owner& owner, uint32_t rows) noexcept;
  void take_back() noexcept;

  const DriverApi& api_;
  const uint32_t records_log2_;
  int multiprocessors_ = 0;
  std::array<CUfunction, kFloatFormats> functions_{};
  StatsWorkspace* workspaces_ = nullptr;  // in device memory
  const uint32_t* words_ = nullptr;       // likewise, of graphs
  Owners<kStreams> streams_;
  Owners<kCaptured> captures_;
  // Of each workspace, the capture that has it; 0: none.
  static constexpr unsigned long long kByStream = ~0ULL;
  std::array<unsigned long long, kWorkspaces> holders_{};
  struct HeldGraph {
    unsigned long long capture;
    size_t word;
    std::shared_ptr<const GraphLife> life;
  };
  std::vector<HeldGraph> graphs_;
  std::bitset<kWords> taken_words_;
  size_t next_word_ = 0;
  uint64_t* next_indices_ = nullptr;  // in device memory, one a ring
  // Release by the thread that launches, acquire by the one that takes.
  std::array<std::atomic<ResultRing*>, kRings> rings_{};
  // Written by the thread that launches, read by others: relaxed, since they are counts alone.
  std::atomic<uint64_t> no_workspace_{0};
  std::atomic<uint64_t> not_launched_{0};
  uint64_t discarded_ = 0;
};

}  // namespace pertoken::cuda
