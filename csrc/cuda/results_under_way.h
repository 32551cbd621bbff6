// The results of kernels that a recording waits for: how many a device still owes, how long one may
// take, and what is lost. For what observes tensors and what reads logits alike.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <utility>

#include "core/device_results.h"
#include "cuda/driver_api.h"

namespace pertoken::cuda {

// For which reason a result is missing.
enum class Loss : uint8_t { kNone, kNoRoom, kInCapture, kLate, kFailed };

// Results under way are those launched, less those done with. Relaxed: they bound, and order
// nothing.
struct ResultCount {
  std::atomic<uint64_t> launched{0};  // written by the model's thread
  std::atomic<uint64_t> done{0};      // written by the collector

  // The model's thread.
  void add_launched(uint64_t results) noexcept {
    launched.store(launched.load(std::memory_order_relaxed) + results, std::memory_order_relaxed);
  }
  uint64_t count() const noexcept {
    return launched.load(std::memory_order_relaxed) - done.load(std::memory_order_relaxed);
  }
};

// Of one device.
struct ResultsUnderWay : ResultCount {
  // Release by the model's thread, acquire by the collector: what was launched before counts.
  std::atomic<bool> is_alive{true};
  uint64_t launched_before = 0;  // the collector's: in the round before
  uint64_t given_up = 0;         // the collector's: these may arrive later still

  // When the recording is over: whether no kernel can write any more, and another one may begin.
  bool is_settled() const noexcept {
    return count() == 0 && given_up == 0 && is_alive.load(std::memory_order_acquire);
  }
  // The collector: launched since it was asked last.
  uint64_t launched_since() noexcept {
    const uint64_t now = launched.load(std::memory_order_relaxed);
    return now - std::exchange(launched_before, now);
  }
};

// kNone while a result may still come that was launched at `ticks`, on a device that `was_alive`
// before its results were taken: a dead one leaves no more.
Loss loss_by_now(bool was_alive, uint64_t ticks, uint64_t now, double ns_per_tick) noexcept;

// Any thread, but losses().
class LostResults {
 public:
  void count(Loss loss, uint64_t results) noexcept {
    counts_[static_cast<size_t>(loss)].fetch_add(results, std::memory_order_relaxed);
  }
  // What a call that failed means. A device that failed is left alone from then on; a stream that
  // is none harms itself alone. By the thread that launches.
  Loss loss_of(ResultsUnderWay& device, CUresult result) noexcept;

  ObservationLosses losses(const DriverApi& api) const;

 private:
  static constexpr size_t kLosses = 5;

  std::array<std::atomic<uint64_t>, kLosses> counts_{};  // statistics
  std::atomic<CUresult> failure_{CUDA_SUCCESS};          // the first; for people
};

}  // namespace pertoken::cuda
