// The events of one thread on one device, used again and again. The thread takes a free one for
// each boundary; whoever drops the last reference to it gives it back: the thread itself, or the
// collector through a ring. A reference is held by the thread for as long as the boundary may be
// shared or is the start of an open span, and by the collector for each span that it waits for. So
// an event is recorded again only after it was read; its generation proves it.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <vector>

#include "core/spsc_ring.h"
#include "cuda/driver_api.h"

namespace pertoken::cuda {

// A moment in a stream: which event was recorded, for which use of it.
struct Boundary {
  static constexpr uint32_t kNone = 0xFFFFFFFFu;
  static constexpr uint32_t kInCapture = 0xFFFFFFFEu;  // none, since the stream is being captured
  uint32_t slot = kNone;
  uint32_t generation = 0;

  explicit operator bool() const noexcept { return slot < kInCapture; }
  bool is_in_capture() const noexcept { return slot == kInCapture; }
};

struct EventSlot {
  // Written by the thread before it hands out a boundary; the collector sees it through the ring
  // that the boundary came by.
  CUevent event = nullptr;
  CUstream stream = nullptr;
  uint64_t stream_number = 0;  // the driver's
  uint64_t record_ticks = 0;   // the host's, when it was recorded
  uint32_t generation = 0;
  // Of both sides. Decrements are acq_rel, so that the last one sees what the others did.
  std::atomic<uint32_t> references{0};

  // The collector's.
  uint32_t resolved_generation = 0;  // of the boundary that the rest is about; 0: none
  int64_t device_ns = 0;
  uint64_t device_ticks = 0;  // the same moment in the host's ticks
};

class EventPool {
 public:
  static constexpr uint32_t kFirstEvents = 64;

  // Makes no events yet. Throws std::bad_alloc.
  explicit EventPool(uint32_t capacity);

  // The thread only. A slot with one reference and a new generation; kNone when all are in use.
  uint32_t take() noexcept;
  void give_back(uint32_t slot) noexcept {
    own_free_[own_count_++] = slot;
    count_handed_out(-1);
  }
  void drop(uint32_t slot) noexcept {
    if (slots_[slot].references.fetch_sub(1, std::memory_order_acq_rel) == 1) give_back(slot);
  }

  // The collector only.
  void drop_collected(uint32_t slot) noexcept {
    if (slots_[slot].references.fetch_sub(1, std::memory_order_acq_rel) == 1) returned(slot);
  }
  // Makes `count` more events, as far as the capacity goes. Also whoever sets the pool up.
  CUresult grow(const DriverApi& api, uint32_t count) noexcept;
  // No more than half of the events are free, as where none could be made, and there may be more.
  bool runs_low() const noexcept {
    const uint64_t in_use = handed_out_.load(std::memory_order_relaxed) - returned_;
    return made_ < capacity_ && 2 * in_use >= made_;
  }

  // Neither side may use the pool any more.
  void destroy(const DriverApi& api) noexcept;

  EventSlot& operator[](uint32_t slot) noexcept { return slots_[slot]; }
  void add_reference(uint32_t slot) noexcept {
    slots_[slot].references.fetch_add(1, std::memory_order_relaxed);
  }
  uint32_t made() const noexcept { return made_; }

 private:
  void returned(uint32_t slot) noexcept {
    static_cast<void>(free_.try_push(slot));
    ++returned_;
  }
  void count_handed_out(int64_t change) noexcept {
    handed_out_.store(handed_out_.load(std::memory_order_relaxed) + static_cast<uint64_t>(change),
                      std::memory_order_relaxed);
  }

  const uint32_t capacity_;
  std::unique_ptr<EventSlot[]> slots_;
  std::unique_ptr<uint32_t[]> own_free_;  // the thread's
  uint32_t own_count_ = 0;
  SpscRing<uint32_t> free_;  // from the collector; holds every slot, so it is never full
  // Taken and not given back by the thread itself. Written by it and read by the collector; a
  // statistic, so relaxed on both sides.
  std::atomic<uint64_t> handed_out_{0};
  uint64_t returned_ = 0;  // the collector's
  uint32_t made_ = 0;      // the collector's, once the pool is set up
};

}  // namespace pertoken::cuda
