// The buffers of threads on their way to the collector. A thread hands over its own the first time
// it records, perhaps while it holds up all others of Python, and the collector may be at a disk or
// a driver that does not answer: so neither waits for the other.
#pragma once

#include <list>
#include <memory>
#include <mutex>
#include <utility>

#include "core/thread_buffer.h"

namespace pertoken {

using ThreadBuffers = std::list<std::unique_ptr<ThreadBuffer>>;

class ThreadArrivals {
 public:
  // Any thread. Throws std::bad_alloc, and then nothing is handed over.
  ThreadBuffer* hand_over(std::unique_ptr<ThreadBuffer> buffer) {
    ThreadBuffers one;
    one.push_back(std::move(buffer));
    ThreadBuffer* const handed_over = one.front().get();
    const std::lock_guard guard(mutex_);
    waiting_.splice(waiting_.end(), one);
    return handed_over;
  }

  // The collector: those that wait come behind `into`, one after the other, when receive(buffer)
  // has returned. What that throws is passed on, and the rest waits on.
  template <typename Receive>
  void take(ThreadBuffers& into, Receive&& receive) {
    const std::lock_guard guard(mutex_);
    while (!waiting_.empty()) {
      receive(*waiting_.front());
      into.splice(into.end(), waiting_, waiting_.begin());
    }
  }

  // Held over a fork.
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::mutex mutex_;
  ThreadBuffers waiting_;
};

}  // namespace pertoken
