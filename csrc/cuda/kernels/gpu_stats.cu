// The histogram and the moments of a tensor in one launch: read once, counted in shared memory,
// added up in a workspace in device memory, written by the last block to a ring in pinned memory
// that the host reads behind it. Launched by cuda/gpu_stats.cpp, on the stream that made the
// tensor.
#include "cuda/stats_block.h"

namespace pertoken::cuda {
namespace {

constexpr uint32_t kWarps = kStatsThreads / kWarpLanes;

template <FloatFormat Format>
struct DeviceWarp {
  using Table = typename StatsShared<Format>::Table;
  StatsShared<Format>& shared;
  uint32_t lane;
  uint32_t own_carry;  // lane by lane, over and over

  __device__ void count(uint32_t slot) const {
    atomicAdd(shared.table.counts + Table::place(slot, lane), 1U);
  }
  __device__ const SlotCarries& carries() const { return shared.carries; }
  // Of the table in the lanes' registers: one instruction, and no address to compute. Lanes above
  // the table hold it once more, so that nothing need be cut off.
  __device__ uint32_t carry(uint32_t top) const {
    return __shfl_sync(kAllLanes, own_carry, static_cast<int>(top));
  }
  __device__ bool any(bool here) const { return __any_sync(kAllLanes, here) != 0; }
};

__device__ StatsMoments of_lanes(StatsMoments moments) {
  for (int step = kWarpLanes / 2; step > 0; step /= 2) {
    StatsMoments other;
    other.sum = __shfl_down_sync(kAllLanes, moments.sum, step);
    other.sum_sq = __shfl_down_sync(kAllLanes, moments.sum_sq, step);
    other.min = __shfl_down_sync(kAllLanes, moments.min, step);
    other.max = __shfl_down_sync(kAllLanes, moments.max, step);
    combine(moments, other);
  }
  return moments;
}

// The last block of a row, all its threads. Reads past the first cache: other blocks wrote what is
// here.
__device__ void publish(const StatsArgs& args, uint32_t replay, uint32_t thread, uint64_t& index,
                        uint32_t& filled) {
  StatsWorkspace& workspace = args.workspaces[blockIdx.y];
  if (thread == 0)
    index = atomicAdd(reinterpret_cast<unsigned long long*>(args.ring.next_index), 1ULL);
  __syncthreads();
  uint64_t* const record = slot_at(args.ring, index);
  const uint64_t tag = tag_of(index, args.ring.capacity_log2);
  write_slots(workspace, record, tag, thread, kStatsThreads,
              [&] { return atomicAdd(&filled, 1U); });
  StatsMoments moments = no_moments();
  if (thread < kWarpLanes) {
    // In an order that depends on nothing but the number of blocks.
    for (uint32_t block = thread; block < gridDim.x; block += kWarpLanes) {
      combine(moments, workspace.of_block[block]);
    }
    moments = of_lanes(moments);
  }
  __syncthreads();
  if (thread == 0) write_header(args, blockIdx.y, replay, record, tag, filled, moments);
}

// Blocks of one row disagreed on whether to count, since that was changed meanwhile.
__device__ void discard(const StatsArgs& args, uint32_t replay, uint32_t thread) {
  for (uint32_t slot = thread; slot < kSlots; slot += kStatsThreads) {
    args.workspaces[blockIdx.y].counts[slot] = 0;
  }
  if (thread != 0) return;
  const uint64_t index =
      atomicAdd(reinterpret_cast<unsigned long long*>(args.ring.next_index), 1ULL);
  write_header(args, blockIdx.y, replay, slot_at(args.ring, index),
               tag_of(index, args.ring.capacity_log2), kNoResult, no_moments());
}

template <FloatFormat Format>
__device__ void count_tensor(const StatsArgs& args) {
  __shared__ StatsShared<Format> shared;
  const uint32_t thread = threadIdx.x;
  const uint32_t lane = thread % kWarpLanes;
  const uint32_t warp = thread / kWarpLanes;
  StatsWorkspace& workspace = args.workspaces[blockIdx.y];
  if (thread == 0) {
    shared.replay = args.replay == nullptr ? 0 : *const_cast<const volatile uint32_t*>(args.replay);
    shared.is_on = args.replay == nullptr || shared.replay != 0;
  }
  clear(shared, args.carries, thread, kStatsThreads);
  __syncthreads();
  if (shared.is_on != 0) {
    StatsMoments moments = no_moments();
    const DeviceWarp<Format> own{shared, lane, shared.carries.of[lane % kCarries]};
    read_units<Format>(args.layout, blockIdx.y, blockIdx.x * kWarps + warp, gridDim.x * kWarps,
                       lane, own, moments);
    __syncthreads();
    shared.table.flush(
        thread, kStatsThreads, args,
        [&](uint32_t slot, uint32_t n) { atomicAdd(&workspace.counts[slot], n); }, moments);
    moments = of_lanes(moments);
    if (lane == 0) shared.of_warp[warp] = moments;
  }
  // Each thread's additions are seen by whoever sees the block counted as done.
  __threadfence();
  __syncthreads();
  if (thread == 0) {
    if (shared.is_on != 0) {
      StatsMoments moments = no_moments();
      for (const StatsMoments& of_warp : shared.of_warp) combine(moments, of_warp);
      workspace.of_block[blockIdx.x] = moments;
      __threadfence();
    }
    shared.done = atomicAdd(&workspace.done, shared.is_on != 0 ? kBlockDone : kBlockSkipped) +
                  (shared.is_on != 0 ? kBlockDone : kBlockSkipped);
  }
  __syncthreads();
  if ((shared.done & 0xffffU) != gridDim.x) return;
  __threadfence();
  const uint32_t skipped = shared.done >> 16;
  if (skipped == 0) {
    publish(args, shared.replay, thread, shared.index, shared.filled);
  } else if (skipped != gridDim.x) {
    discard(args, shared.replay, thread);
  }
  if (thread == 0) workspace.done = 0;
}

}  // namespace
}  // namespace pertoken::cuda

// Two blocks a multiprocessor, so that loads of 64 KB are under way on each.
#define PERTOKEN_STATS_KERNEL(name, format)                                           \
  extern "C" __global__ void __launch_bounds__(pertoken::cuda::kStatsThreads, 2)      \
      pertoken_stats_##name(const __grid_constant__ pertoken::cuda::StatsArgs args) { \
    pertoken::cuda::count_tensor<pertoken::FloatFormat::format>(args);                \
  }

PERTOKEN_STATS_KERNEL(float32, kFloat32)
PERTOKEN_STATS_KERNEL(float16, kFloat16)
PERTOKEN_STATS_KERNEL(bfloat16, kBFloat16)
PERTOKEN_STATS_KERNEL(float8, kFloat8E4M3FN)
