// Which recorders there are, which of them run, and which threads they know; what a fork does to
// them.
#include <pthread.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <bit>

#include "core/recorder.h"

namespace pertoken {

namespace {

// Never destroyed: threads may end, and records arrive, while the process is being torn down.
struct Registry {
  std::mutex mutex;
  std::vector<Recorder*> recorders;  // all there are
  // Those that run. Written under the mutex; release here, acquire in Recorder::at().
  std::array<std::atomic<Recorder*>, kMaxRecorders> running{};
  uint64_t last_uid = 0;
};

Registry& registry() {
  static Registry* const instance = new Registry;
  return *instance;
}

}  // namespace

// A forked child has none of our threads, but a copy of every mutex as it was. Holding them over
// the fork leaves the child's copies usable; its recorders are switched off for good.
struct ForkHandlers {
  static void prepare() {
    registry().mutex.lock();
    for (Recorder* recorder : registry().recorders) {
      recorder->mutex_.lock();
      recorder->arrivals_.lock();
      recorder->request_events().lock();
      recorder->observations_.lock();
      if (recorder->spool_ != nullptr) recorder->spool_->lock();
    }
  }
  static void in_parent() {
    for (Recorder* recorder : registry().recorders) {
      recorder->observations_.unlock();
      if (recorder->spool_ != nullptr) recorder->spool_->unlock();
      recorder->request_events().unlock();
      recorder->arrivals_.unlock();
      recorder->mutex_.unlock();
    }
    registry().mutex.unlock();
  }
  static void in_child() {
    for (Recorder* recorder : registry().recorders) {
      recorder->active_.store(false, std::memory_order_relaxed);
      recorder->in_forked_child_ = true;
      recorder->observations_.leave_file();
      recorder->observations_.unlock();
      recorder->arrivals_.unlock();
      recorder->request_events().unlock();
      recorder->leave_spool_in_child();
      recorder->mutex_.unlock();
    }
    for (auto& running : registry().running) running.store(nullptr, std::memory_order_release);
    registry().mutex.unlock();
  }
  static void install() {
    static const int installed = pthread_atfork(prepare, in_parent, in_child);
    static_cast<void>(installed);
  }
};

std::shared_ptr<Recorder> Recorder::create(const RecorderOptions& options) {
  ForkHandlers::install();
  const std::lock_guard lock(registry().mutex);
  // In a forked child the drain thread does not exist and its condition variable may count a
  // waiter that never leaves: destroying it would hang, so the child lets it be.
  std::shared_ptr<Recorder> recorder(new Recorder(options, ++registry().last_uid),
                                     [](Recorder* dead) {
                                       dead->leave_registry();
                                       if (!dead->in_forked_child_) delete dead;
                                     });
  registry().recorders.push_back(recorder.get());
  return recorder;
}

void Recorder::leave_registry() noexcept {
  release_slot();
  const std::lock_guard lock(registry().mutex);
  std::erase(registry().recorders, this);
}

void Recorder::leave_spool_in_child() noexcept {
  if (spool_ == nullptr) return;
  spool_->abandon();
  spool_->unlock();
  try {
    take_arrivals_locked();
  } catch (...) {
    ++collector_faults_;
  }
  for (const auto& buffer : buffers_) {
    if (buffer->ring_file == nullptr) continue;
    const uint64_t pushed = buffer->ring.pushed();
    if (buffer->ring_file->become_private()) {
      buffer->ring.restart(pushed);
    } else {
      shares_rings_ = true;
    }
  }
}

Recorder* Recorder::at(int slot) noexcept {
  return registry().running[static_cast<size_t>(slot)].load(std::memory_order_acquire);
}

bool Recorder::take_slot() noexcept {
  const std::lock_guard lock(registry().mutex);
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    auto& running = registry().running[static_cast<size_t>(slot)];
    if (running.load(std::memory_order_relaxed) != nullptr) continue;
    slot_.store(slot, std::memory_order_relaxed);
    run_uid_.store(++registry().last_uid, std::memory_order_relaxed);
    running.store(this, std::memory_order_release);
    return true;
  }
  return false;
}

void Recorder::release_slot() noexcept {
  const std::lock_guard lock(registry().mutex);
  for (auto& running : registry().running) {
    if (running.load(std::memory_order_relaxed) == this) {
      running.store(nullptr, std::memory_order_release);
    }
  }
}

// Drops what a thread remembers of recorders that are gone.
void Recorder::forget_gone_recorders(ThreadState& state) noexcept {
  const std::lock_guard lock(registry().mutex);
  std::erase_if(state.attached, [](const ThreadState::Entry& entry) {
    return std::none_of(
        registry().recorders.begin(), registry().recorders.end(),
        [&](const Recorder* recorder) { return recorder->uid_ == entry.recorder_uid; });
  });
}

ThreadBuffer* Recorder::attach_thread() noexcept {
  ThreadState* state = ensure_thread_state();
  if (state == nullptr || in_forked_child_) {
    unattached_.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
  forget_gone_recorders(*state);
  ThreadState::Entry& entry = state->entries[slot()];
  for (const ThreadState::Entry& known : state->attached) {
    if (known.recorder_uid == uid_) {
      entry = known;
      return entry.buffer;
    }
  }
  try {
    state->attached.reserve(state->attached.size() + 1);
    const int64_t tid = system_thread_id();
    const std::string name = system_thread_name();
    const size_t capacity = std::bit_ceil(options_.ring_capacity);
    const int32_t track = collector_.tracks().add();
    std::unique_ptr<MappedFile> file;
    if (spool_ != nullptr) {
      file = spool_->make_ring_file(track, tid, name, capacity,
                                    SpscRing<Record>::block_bytes(capacity));
    }
    auto buffer =
        std::make_unique<ThreadBuffer>(capacity, track, tid, name, &wake_, std::move(file));
    entry = {uid_, arrivals_.hand_over(std::move(buffer))};
    state->attached.push_back(entry);
    return entry.buffer;
  } catch (...) {
    unattached_.fetch_add(1, std::memory_order_relaxed);
    return nullptr;
  }
}

void Recorder::detach_thread(ThreadState* state) noexcept {
  const std::lock_guard lock(registry().mutex);
  for (const ThreadState::Entry& entry : state->attached) {
    for (Recorder* recorder : registry().recorders) {
      if (recorder->uid_ != entry.recorder_uid) continue;
      // Pairs with the acquire load in drain_locked(): the last pushes come before it.
      entry.buffer->thread_exited.store(true, std::memory_order_release);
      // Buffers of threads that are gone shall not pile up while the collector sleeps.
      if (++recorder->threads_exited_ % kExitsTogether == 0) recorder->wake_.wake();
    }
  }
}

}  // namespace pertoken
