// How a recorder takes in what its devices have timed, and the tracks of it.
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
  for (const auto& source : device_sources_) source->collect(ns_per_tick_, device_spans_);
  size_t done = 0;
  while (done < device_spans_.size()) {
    try {
      for (; done < device_spans_.size(); ++done) collect_device_span(device_spans_[done]);
    } catch (...) {
      ++collector_faults_;
      ++done;
    }
  }
}

void Recorder::collect_device_span(const DeviceSpan& span) {
  if (span.is_step) collect_device_step(span);
  if (span.site == kNoSite) return;
  const auto [entry, is_new] =
      device_tracks_.try_emplace({span.track, span.device, span.stream}, DeviceTrack{});
  DeviceTrack& track = entry->second;
  if (is_new) {
    track = {next_track_, int64_t{span.seq}};
    for (const auto& buffer : buffers_) {
      if (buffer->track == span.track) track.last_seq = buffer->progress.last_seq;
    }
    tracks_.push_back({track.track, static_cast<int64_t>(span.stream),
                       "stream " + std::to_string(span.stream), span.device});
    next_track_ = next_track_ == std::numeric_limits<int32_t>::max() ? 0 : next_track_ + 1;
  }
  track.last_seq = widen(track.last_seq, span.seq);
  const int64_t seq = track.last_seq;
  const int64_t parent_seq =
      span.parent_seq == 0 ? 0 : seq - static_cast<uint32_t>(span.seq - span.parent_seq);
  const int64_t step = span.step == kNone32 ? kNoStep : widen(last_step_, span.step);
  store_.add_span({span.start_ticks, span.end_ticks - span.start_ticks, seq, parent_seq, step,
                   span.site, track.track});
}

void Recorder::collect_device_step(const DeviceSpan& span) {
  if (span.step == kNone32) return;
  StepRow* row = store_.step(widen(last_step_, span.step));
  if (row == nullptr || !row->begun) return;
  const bool is_first = row->gpu_end_ticks == 0;
  row->gpu_start_ticks =
      is_first ? span.start_ticks : std::min(row->gpu_start_ticks, span.start_ticks);
  row->gpu_end_ticks = std::max(row->gpu_end_ticks, span.end_ticks);
  row->gpu_idle_ticks = std::max(row->gpu_idle_ticks, span.idle_ticks);
}

// A server may take a thread for each request: those of which nothing is left are let go. Looks at
// the whole store, so only when there are twice as many tracks as it had to keep the last time.
void Recorder::forget_tracks_locked() {
  std::unordered_set<int32_t> used = store_.tracks();
  for (const auto& buffer : buffers_) used.insert(buffer->track);
  std::erase_if(tracks_, [&](const TrackInfo& track) { return !used.contains(track.track); });
  std::erase_if(device_tracks_,
                [&](const auto& entry) { return !used.contains(entry.second.track); });
  forget_tracks_at_ = std::max(2 * tracks_.size(), kFewTracks);
}

}  // namespace pertoken
