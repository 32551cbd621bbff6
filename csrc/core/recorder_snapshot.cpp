// What a recorder tells while it runs: copies of one moment, taken under its mutex.
#include <algorithm>
#include <utility>

#include "core/recorder.h"

namespace pertoken {

RecorderSnapshot Recorder::snapshot() {
  std::unique_lock lock(mutex_);
  settle_locked(lock);
  RecorderSnapshot snapshot;
  snapshot.clock = clock_map_locked();
  snapshot.store = collector_.store().snapshot();
  snapshot.tracks = collector_.tracks().known();
  std::ranges::sort(snapshot.tracks, {}, &TrackInfo::track);
  snapshot.losses = losses_locked();
  return snapshot;
}

RecorderTotals Recorder::totals() {
  std::unique_lock lock(mutex_);
  settle_locked(lock);
  RecorderTotals totals{collector_.aggregates().snapshot(), losses_locked()};
  totals.requests_uncounted = collector_.requests().requests_uncounted();
  totals.tokens_uncounted = collector_.requests().tokens_uncounted();
  return totals;
}

ClockMap Recorder::clock_map_locked() { return replayed_clock_ ? *replayed_clock_ : clock_.map(); }

// All but what the store has evicted, which takes a look at its chunks.
RecorderLosses Recorder::record_losses_locked() const {
  RecorderLosses losses = replayed_losses_;
  losses.records_dropped += dropped_by_gone_threads_ + unattached_.load(std::memory_order_relaxed);
  for (const auto& buffer : buffers_) {
    losses.records_dropped += buffer->dropped.load(std::memory_order_relaxed);
  }
  losses.recording_faults += faults_.load(std::memory_order_relaxed);
  losses.collector_faults += collector_faults_;
  if (spool_ != nullptr) losses.spool_frames_lost = spool_->frames_lost();
  return losses;
}

RecorderLosses Recorder::losses_locked() {
  RecorderLosses losses = record_losses_locked();
  losses.spans_evicted = collector_.store().spans_evicted();
  losses.steps_evicted = collector_.store().steps_evicted();
  losses.observations_dropped += observations_.dropped();
  losses.observations_evicted = collector_.store().observations_evicted();
  for (const auto& source : device_sources_) losses.devices.add(source->losses());
  if (device_observations_ != nullptr) {
    losses.device_observations = device_observations_->losses();
  }
  if (device_logits_ != nullptr) losses.device_logits = device_logits_->losses();
  return losses;
}

RecorderStatus Recorder::status() {
  const std::lock_guard lock(mutex_);
  drain_locked();
  const Activity& activity = collector_.activity();
  return {.activity = activity,
          .step_ns = to_ns(activity.step_ticks, collector_.ns_per_tick()),
          .drain_cpu_ns = drain_cpu_ns_,
          .store_bytes = collector_.store().bytes(),
          .losses = losses_locked()};
}

uint64_t Recorder::drain_cpu_ns() {
  const std::lock_guard lock(mutex_);
  return drain_cpu_ns_;
}

SamplerReport Recorder::sampling() {
  const std::lock_guard lock(mutex_);
  drain_locked();
  return sampler_ == nullptr ? SamplerReport{} : sampler_->report();
}

int64_t Recorder::first_step() {
  const std::lock_guard lock(mutex_);
  return collector_.store().first_step();
}

uint64_t Recorder::oldest_step_ticks() {
  const uint64_t now = now_ticks();
  const std::lock_guard lock(mutex_);
  drain_locked();
  return collector_.store().steps_evicted() == 0 ? 0 : collector_.store().oldest_step_ticks(now);
}

size_t Recorder::attached_threads() {
  const std::lock_guard lock(mutex_);
  take_arrivals_locked();
  return buffers_.size();
}

size_t Recorder::store_bytes() {
  const std::lock_guard lock(mutex_);
  return collector_.store().bytes();
}

}  // namespace pertoken
