// The replays that a recording has announced, on their way from the model's threads to its
// collector, and how far that has come with them: of one that it is done with, it takes no stamp
// any more.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "core/spsc_ring.h"

namespace pertoken::cuda {

// A replay that is under way, whose spans are awaited.
struct StampedReplay {
  uint64_t ticks;  // the host's
  uint32_t graph;
  uint32_t number;     // of the graph's replays
  uint32_t seq;        // of the replay's own span
  uint32_t first_seq;  // of its `calls`
  uint32_t calls;      // of the recording that are in the graph
  uint32_t step;
  uint32_t left_out;  // the step's ThreadBuffer::open_detail
  int32_t track;
  int16_t device;
  bool is_withdrawn = false;  // the driver did not take it: what was awaited does not come
};

class AnnouncedReplays {
 public:
  // Under the GIL, which makes the model's threads one producer; hot. False where there is no room.
  bool try_push(const StampedReplay& replay) noexcept { return ring_.try_push(replay); }
  // Under the GIL: how many there were so far.
  uint64_t pushed() const noexcept { return ring_.pushed(); }

  // Any thread: so many of the first ones are done with.
  uint64_t settled() const noexcept {
    // Pairs with the release store in settle().
    return settled_.load(std::memory_order_acquire);
  }

  // The collector, as are the next: `take(replay, index)` for each that is new.
  template <typename Take>
  void read(Take&& take) {
    for (auto replays = ring_.readable(); !replays.empty(); replays = ring_.readable()) {
      uint64_t index = ring_.taken();
      for (const StampedReplay& replay : replays) take(replay, index++);
      ring_.release(replays.size());
    }
  }
  bool is_read() noexcept { return ring_.readable().empty(); }
  uint64_t taken() const noexcept { return ring_.taken(); }
  void settle(uint64_t count) noexcept {
    // Pairs with the acquire load in settled(): nothing is held of those replays.
    settled_.store(count, std::memory_order_release);
  }

 private:
  static constexpr size_t kRing = 4096;

  SpscRing<StampedReplay> ring_{kRing};
  std::atomic<uint64_t> settled_{0};
};

}  // namespace pertoken::cuda
