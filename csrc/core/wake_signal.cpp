#include "core/wake_signal.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <ctime>

namespace pertoken {

static_assert(sizeof(std::atomic<uint32_t>) == 4 && std::atomic<uint32_t>::is_always_lock_free,
              "the system sleeps on its four bytes");

void WakeSignal::wake() noexcept {
  if (is_set_.exchange(1, std::memory_order_release) != 0) return;
  syscall(SYS_futex, &is_set_, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
}

void WakeSignal::wait_for(std::chrono::nanoseconds longest) noexcept {
  if (is_set_.exchange(0, std::memory_order_acquire) != 0) return;
  const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(longest);
  timespec timeout{};
  timeout.tv_sec = seconds.count();
  timeout.tv_nsec = std::chrono::nanoseconds(longest - seconds).count();
  // Sleeps only while nothing is set; by a clock that nobody sets.
  syscall(SYS_futex, &is_set_, FUTEX_WAIT_PRIVATE, 0, &timeout, nullptr, 0);
  is_set_.exchange(0, std::memory_order_acquire);
}

}  // namespace pertoken
