// The kernels of csrc/cuda/kernels on a processor: the same functions between the barriers, one
// thread of a block after the other, one block after the other. What is not run here are the
// barriers, atomics and shuffles of the .cu files themselves.
#pragma once

#include <bit>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "cuda/stats_block.h"
#include "cuda/stats_plan.h"
#include "fake_driver.h"

namespace pertoken::testing {

template <FloatFormat Format>
struct EmulatedWarp {
  using Table = typename cuda::StatsShared<Format>::Table;
  cuda::StatsShared<Format>& shared;
  uint32_t lane;

  void count(uint32_t slot) const { ++shared.table.counts[Table::place(slot, lane)]; }
  const SlotCarries& carries() const { return shared.carries; }
  uint32_t carry(uint32_t top) const { return shared.carries.of[top & (kCarries - 1)]; }
  bool any(bool here) const { return here; }
};

// Lanes are combined as a warp does it, so that sums are those of the kernel to the bit but for
// fused multiplications.
inline cuda::StatsMoments of_lanes(std::vector<cuda::StatsMoments> lanes) {
  for (size_t step = cuda::kWarpLanes / 2; step > 0; step /= 2) {
    for (size_t i = 0; i < step; ++i) combine(lanes[i], lanes[i + step]);
  }
  return lanes[0];
}

template <FloatFormat Format>
void run_stats_block(const cuda::StatsArgs& args, uint32_t row, uint32_t block, uint32_t blocks) {
  using namespace cuda;
  constexpr uint32_t kWarps = kStatsThreads / kWarpLanes;
  const auto shared = std::make_unique<StatsShared<Format>>();
  std::fill_n(shared->table.counts, std::size(shared->table.counts), 0xdeadbeefU);
  shared->replay = args.replay == nullptr ? 0 : *args.replay;
  shared->is_on = args.replay == nullptr || shared->replay != 0;
  for (uint32_t thread = 0; thread < kStatsThreads; ++thread) {
    clear(*shared, args.carries, thread, kStatsThreads);
  }
  StatsWorkspace& workspace = args.workspaces[row];
  if (shared->is_on != 0) {
    std::vector<StatsMoments> moments(kStatsThreads, no_moments());
    for (uint32_t thread = 0; thread < kStatsThreads; ++thread) {
      const uint32_t lane = thread % kWarpLanes;
      const EmulatedWarp<Format> warp{*shared, lane};
      read_units<Format>(args.layout, row, block * kWarps + thread / kWarpLanes, blocks * kWarps,
                         lane, warp, moments[thread]);
    }
    for (uint32_t thread = 0; thread < kStatsThreads; ++thread) {
      shared->table.flush(
          thread, kStatsThreads, args,
          [&](uint32_t slot, uint32_t n) { workspace.counts[slot] += n; }, moments[thread]);
    }
    StatsMoments of_block = no_moments();
    for (uint32_t warp = 0; warp < kWarps; ++warp) {
      const auto first = moments.begin() + warp * kWarpLanes;
      combine(of_block, of_lanes({first, first + kWarpLanes}));
    }
    workspace.of_block[block] = of_block;
  }
  workspace.done += shared->is_on != 0 ? kBlockDone : kBlockSkipped;
  if ((workspace.done & 0xffffU) != blocks) return;
  const uint32_t skipped = workspace.done >> 16;
  workspace.done = 0;
  if (skipped == blocks) return;
  const uint64_t index = (*args.ring.next_index)++;
  uint64_t* const record = slot_at(args.ring, index);
  const uint64_t tag = tag_of(index, args.ring.capacity_log2);
  uint32_t filled = 0;
  StatsMoments moments = no_moments();
  if (skipped == 0) {
    for (uint32_t thread = 0; thread < kStatsThreads; ++thread) {
      write_slots(workspace, record, tag, thread, kStatsThreads, [&] { return filled++; });
    }
    std::vector<StatsMoments> lanes(kWarpLanes, no_moments());
    for (uint32_t of = 0; of < blocks; ++of) {
      combine(lanes[of % kWarpLanes], workspace.of_block[of]);
    }
    moments = of_lanes(lanes);
  } else {
    for (uint32_t& count : workspace.counts) count = 0;
    filled = kNoResult;
  }
  write_header(args, row, shared->replay, record, tag, filled, moments);
}

template <FloatFormat Format>
void run_stats(const cuda::StatsArgs& args, uint32_t blocks, uint32_t rows = 1) {
  for (uint32_t row = 0; row < rows; ++row) {
    for (uint32_t block = 0; block < blocks; ++block) {
      run_stats_block<Format>(args, row, block, blocks);
    }
  }
}

template <FloatFormat Format>
void add_stats_kernel(FakeDriver& driver) {
  driver.add_kernel(cuda::stats_kernel_of(Format),
                    {{sizeof(cuda::StatsArgs)}, 3000, [](const FakeLaunch& launch) {
                       run_stats<Format>(launch.parameter<cuda::StatsArgs>(0), launch.grid[0],
                                         launch.grid[1]);
                     }});
}

inline void add_stats_kernels(FakeDriver& driver) {
  add_stats_kernel<FloatFormat::kFloat32>(driver);
  add_stats_kernel<FloatFormat::kFloat16>(driver);
  add_stats_kernel<FloatFormat::kBFloat16>(driver);
  add_stats_kernel<FloatFormat::kFloat8E4M3FN>(driver);
}

}  // namespace pertoken::testing
