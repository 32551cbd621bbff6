#include "cuda/event_pool.h"

#include <algorithm>

namespace pertoken::cuda {

EventPool::EventPool(uint32_t capacity)
    : capacity_(capacity),
      slots_(new EventSlot[capacity]),
      own_free_(new uint32_t[capacity]),
      free_(capacity) {}

uint32_t EventPool::take() noexcept {
  uint32_t slot = Boundary::kNone;
  if (own_count_ > 0) {
    slot = own_free_[--own_count_];
  } else {
    const std::span<const uint32_t> free = free_.readable();
    if (free.empty()) return Boundary::kNone;
    slot = free.front();
    free_.release(1);
  }
  EventSlot& taken = slots_[slot];
  if (++taken.generation == 0) taken.generation = 1;  // 0 is no generation
  taken.references.store(1, std::memory_order_relaxed);
  count_handed_out(1);
  return slot;
}

CUresult EventPool::grow(const DriverApi& api, uint32_t count) noexcept {
  const uint32_t wanted = std::min(capacity_, made_ + count);
  while (made_ < wanted) {
    CUevent event = nullptr;
    const CUresult result = api.cuEventCreate(&event, CU_EVENT_DEFAULT);
    if (result != CUDA_SUCCESS) return result;
    slots_[made_].event = event;
    static_cast<void>(free_.try_push(made_));
    ++made_;
  }
  return CUDA_SUCCESS;
}

void EventPool::destroy(const DriverApi& api) noexcept {
  for (uint32_t slot = 0; slot < made_; ++slot) api.cuEventDestroy_v2(slots_[slot].event);
  made_ = 0;
}

}  // namespace pertoken::cuda
