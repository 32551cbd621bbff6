// Observations on their way to the collector. Pushed by the threads that make them, a few times in
// an observed step; the lock is held for no longer than it takes to move one. Bounded: what does
// not fit is dropped and counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <utility>
#include <vector>

#include "core/observation.h"

namespace pertoken {

class ObservationIntake {
 public:
  // As many as 8 threads with 500 sites each make while the collector sleeps.
  static constexpr size_t kMostWaiting = size_t{1} << 14;

  // Throws std::bad_alloc.
  void push(Observation&& observation) {
    const std::lock_guard guard(mutex_);
    if (waiting_.size() >= kMostWaiting) {
      ++dropped_;
    } else {
      waiting_.push_back(std::move(observation));
    }
  }
  std::vector<Observation> take() {
    const std::lock_guard guard(mutex_);
    return std::exchange(waiting_, {});
  }
  uint64_t dropped() {
    const std::lock_guard guard(mutex_);
    return dropped_;
  }

  // Held over a fork.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  std::vector<Observation> waiting_;
  uint64_t dropped_ = 0;
};

}  // namespace pertoken
