// Wakes the one thread that sleeps by it. Unlike a condition variable it takes no lock to do so, so
// that the model's threads may: at worst they pay for a system call.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>

namespace pertoken {

class WakeSignal {
 public:
  // Any thread: ends the sleep of now or, where nobody sleeps, the next one before it begins.
  void wake() noexcept;
  // One thread at a time. May return early.
  void wait_for(std::chrono::nanoseconds longest) noexcept;

 private:
  // Release in wake(), acquire in wait_for(): what was done before the one is seen behind the
  // other.
  std::atomic<uint32_t> is_set_{0};
};

}  // namespace pertoken
