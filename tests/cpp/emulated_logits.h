// The logit kernels on a processor: the same functions between the barriers, one thread of a block
// after the other. What is not run here are the barriers, atomics and shuffles of the .cu file.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/softmax_sums.h"
#include "cuda/logit_block.h"
#include "fake_driver.h"

namespace pertoken::testing {

// Merged as a warp merges its lanes.
inline SoftmaxSums merged(std::vector<SoftmaxSums> lanes) {
  for (size_t step = lanes.size() / 2; step > 0; step /= 2) {
    for (size_t i = 0; i < step; ++i) lanes[i].merge(lanes[i + step]);
  }
  return lanes[0];
}

inline void run_read_logits(const cuda::LogitArgs& args, uint32_t rows) {
  using namespace cuda;
  for (uint32_t row = 0; row < rows; ++row) {
    std::vector<SoftmaxSums> threads(kLogitThreads);
    for (uint32_t thread = 0; thread < kLogitThreads; ++thread) {
      read_logits(args, row, thread, threads[thread]);
    }
    std::vector<SoftmaxSums> warps;
    for (auto first = threads.begin(); first != threads.end(); first += kWarpLanes) {
      warps.push_back(merged({first, first + kWarpLanes}));
    }
    keep_row(args, row, merged(warps));
  }
}

inline void run_tell_logits(const cuda::TellArgs& args) {
  for (uint32_t number = 0; number < args.count; ++number) {
    tell_token(args, number, [&] { return (*args.ring.next_index)++; });
  }
}

inline void add_logit_kernels(FakeDriver& driver) {
  driver.add_kernel("pertoken_read_logits",
                    {{sizeof(cuda::LogitArgs)}, 4000, [](const FakeLaunch& launch) {
                       run_read_logits(launch.parameter<cuda::LogitArgs>(0), launch.grid[0]);
                     }});
  driver.add_kernel("pertoken_tell_logits",
                    {{sizeof(cuda::TellArgs)}, 2000, [](const FakeLaunch& launch) {
                       run_tell_logits(launch.parameter<cuda::TellArgs>(0));
                     }});
}

}  // namespace pertoken::testing
