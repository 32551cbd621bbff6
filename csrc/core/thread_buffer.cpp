#include "core/thread_buffer.h"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>
#include <new>

#include "core/recorder.h"

namespace pertoken {

thread_local constinit ThreadState* tls_thread_state = nullptr;

namespace {

// Runs when its thread ends. Apart from tls_thread_state, so that reading that one stays a plain
// load: a thread-local with a destructor is initialised behind a guard.
struct ThreadExit {
  std::unique_ptr<ThreadState> state;
  ~ThreadExit() {
    tls_thread_state = nullptr;
    if (state != nullptr) Recorder::detach_thread(state.get());
  }
};
thread_local ThreadExit tls_thread_exit;

}  // namespace

ThreadState* ensure_thread_state() noexcept {
  if (tls_thread_state == nullptr) {
    static std::atomic<uint64_t> last_uid{0};  // relaxed: only uniqueness matters
    const uint64_t uid = last_uid.fetch_add(1, std::memory_order_relaxed) + 1;
    tls_thread_exit.state.reset(new (std::nothrow) ThreadState(uid));
    tls_thread_state = tls_thread_exit.state.get();
  }
  return tls_thread_state;
}

int64_t system_thread_id() noexcept { return static_cast<int64_t>(syscall(SYS_gettid)); }

std::string system_thread_name() {
  char name[16] = {};
  if (pthread_getname_np(pthread_self(), name, sizeof(name)) != 0) return {};
  return name;
}

}  // namespace pertoken
