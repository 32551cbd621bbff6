// What logits say of the tokens that are chosen from them: a block reads a row once, keeps what it
// says and a copy, both in the device's memory; later, when it is known which tokens were chosen,
// that is written to a ring in pinned memory that the host reads behind it. Launched by
// cuda/logit_device.cpp, on the stream that made the logits.
#include "cuda/logit_block.h"

namespace pertoken::cuda {
namespace {

constexpr uint32_t kLogitWarps = kLogitThreads / kWarpLanes;
static_assert(kLogitWarps == kWarpLanes, "one warp merges what all of them have");

}  // namespace
}  // namespace pertoken::cuda

extern "C" __global__ void __launch_bounds__(pertoken::cuda::kLogitThreads)
    pertoken_read_logits(const __grid_constant__ pertoken::cuda::LogitArgs args) {
  using namespace pertoken::cuda;
  using pertoken::SoftmaxSums;
  __shared__ double of_warps[4][kLogitWarps];
  const uint32_t lane = threadIdx.x % kWarpLanes;
  SoftmaxSums sums;
  read_logits(args, blockIdx.x, threadIdx.x, sums);
  // The lanes of each warp, and then, in the first, those of all warps.
  PERTOKEN_NO_UNROLL
  for (int of = 0; of < 2; ++of) {
    PERTOKEN_NO_UNROLL
    for (int step = kWarpLanes / 2; step > 0; step /= 2) {
      SoftmaxSums other;
      other.max = __shfl_down_sync(kAllLanes, sums.max, step);
      other.second = __shfl_down_sync(kAllLanes, sums.second, step);
      other.exps = __shfl_down_sync(kAllLanes, sums.exps, step);
      other.weighted = __shfl_down_sync(kAllLanes, sums.weighted, step);
      sums.merge(other);
    }
    if (of == 1) break;
    if (lane == 0) {
      const uint32_t warp = threadIdx.x / kWarpLanes;
      of_warps[0][warp] = sums.max;
      of_warps[1][warp] = sums.second;
      of_warps[2][warp] = sums.exps;
      of_warps[3][warp] = sums.weighted;
    }
    __syncthreads();
    if (threadIdx.x >= kWarpLanes) return;
    sums.max = of_warps[0][lane];
    sums.second = of_warps[1][lane];
    sums.exps = of_warps[2][lane];
    sums.weighted = of_warps[3][lane];
  }
  if (lane == 0) keep_row(args, blockIdx.x, sums);
}

extern "C" __global__ void __launch_bounds__(pertoken::cuda::kLogitRows)
    pertoken_tell_logits(const __grid_constant__ pertoken::cuda::TellArgs args) {
  if (threadIdx.x >= args.count) return;
  pertoken::cuda::tell_token(args, threadIdx.x, [&] {
    return static_cast<uint64_t>(
        atomicAdd(reinterpret_cast<unsigned long long*>(args.ring.next_index), 1ULL));
  });
}
