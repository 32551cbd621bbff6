// The time at which a stream, or the replay of a graph, comes to a point: one thread, launched by
// cuda/graph_stamps.cpp into captures. The time is read first, so that nothing else is in it.
#include "cuda/stamp_record.h"

extern "C" __global__ void __launch_bounds__(1)
    pertoken_graph_stamp(const __grid_constant__ pertoken::cuda::StampArgs args) {
  uint64_t time_ns;
  asm volatile("mov.u64 %0, %globaltimer;" : "=l"(time_ns)::"memory");
  const uint32_t replay = *const_cast<const volatile uint32_t*>(args.replay);
  pertoken::cuda::write_stamp(args, replay, time_ns, [](uint64_t* next_index) {
    return atomicAdd(reinterpret_cast<unsigned long long*>(next_index), 1ULL);
  });
}
