// How a recorder takes in what its devices have timed.
#include <algorithm>
#include <limits>
#include <string>
#include <unordered_set>
#include <utility>

#include "core/recorder.h"

namespace pertoken {

void DeviceLosses::add(const DeviceLosses& other) {
  no_event += other.no_event;
  in_capture += other.in_capture;
  stream_changed += other.stream_changed;
  late += other.late;
  failed += other.failed;
  overwritten += other.overwritten;
  pending += other.pending;
  bare_replays += other.bare_replays;
  clock_error_ns = std::max(clock_error_ns, other.clock_error_ns);
  if (failure.empty()) failure = other.failure;
  if (no_stamps.empty()) no_stamps = other.no_stamps;
}

void Recorder::add_device_source(std::shared_ptr<DeviceSource> source) {
  const std::lock_guard lock(mutex_);
  device_sources_.push_back(std::move(source));
}

bool Recorder::devices_are_pending_locked() {
  return (device_observations_ != nullptr && device_observations_->is_pending()) ||
         (device_logits_ != nullptr && device_logits_->is_pending()) ||
         std::any_of(device_sources_.begin(), device_sources_.end(),
                     [](const auto& source) { return source->is_pending(); });
}

void Recorder::give_up_devices_locked() noexcept {
  for (const auto& source : device_sources_) source->give_up();
  if (device_observations_ != nullptr) device_observations_->give_up();
  if (device_logits_ != nullptr) device_logits_->give_up();
  try {
    drain_locked();
  } catch (...) {
    ++collector_faults_;
  }
}

// Drains, and once nothing more is recorded waits for the thread that waits for the devices.
void Recorder::settle_locked(std::unique_lock<std::mutex>& lock) {
  drain_locked();
  const auto is_waiting = [&] {
    return stopping_ && !leaving_ && !in_forked_child_ && devices_are_pending_locked();
  };
  for (int rounds = 0; is_waiting(); ++rounds) {
    // What was recorded when that thread had ended, nobody else gives up.
    if (rounds == kRoundsForDevices) return give_up_devices_locked();
    lock.unlock();
    std::this_thread::sleep_for(kShortestWait);
    lock.lock();
    drain_locked();
  }
}

// After the rings, so that a step is known before its time on the device. A forked child has no
// device.
void Recorder::collect_devices_locked() {
  if (device_sources_.empty() || in_forked_child_) return;
  device_spans_.clear();
  for (const auto& source : device_sources_)
    source->collect(collector_.ns_per_tick(), device_spans_);
  const auto last_seq_of = [this](int32_t track) {
    const auto at = std::ranges::find(buffers_, track, [](const auto& own) { return own->track; });
    return at == buffers_.end() ? int64_t{-1} : (*at)->progress.last_seq;
  };
  size_t done = 0;
  while (done < device_spans_.size()) {
    try {
      for (; done < device_spans_.size(); ++done) {
        collector_.collect(device_spans_[done], last_seq_of);
      }
    } catch (...) {
      ++collector_faults_;
      ++done;
    }
  }
}

// A server may take a thread for each request: those of which nothing is left are let go. Looks at
// the whole store, so only when there are twice as many tracks as it had to keep the last time.
void Recorder::forget_tracks_locked() {
  std::unordered_set<int32_t> used;
  for (const auto& buffer : buffers_) used.insert(buffer->track);
  collector_.forget_tracks(std::move(used));
}

}  // namespace pertoken
