// How observations, and the logits of tokens on devices, reach the store and the aggregates.
#include <algorithm>
#include <array>
#include <bit>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "core/recorder.h"

namespace pertoken {

void Recorder::set_observation_source(std::shared_ptr<ObservationSource> source) {
  const std::lock_guard lock(mutex_);
  device_observations_ = std::move(source);
}

void Recorder::set_logit_reader(std::shared_ptr<LogitReader> reader) {
  const std::lock_guard lock(mutex_);
  collector_.aggregates().logits().follow();
  logit_reader_ = std::move(reader);
}

void Recorder::set_logit_source(std::shared_ptr<LogitSource> source) {
  const std::lock_guard lock(mutex_);
  // Of no thread: the drain pushes what it takes again right after.
  auto buffer =
      std::make_unique<ThreadBuffer>(std::bit_ceil(options_.ring_capacity),
                                     collector_.tracks().add(), kNoThread, "logits on GPUs");
  buffers_.push_back(std::move(buffer));
  logits_buffer_ = buffers_.back().get();
  device_logits_ = std::move(source);
}

// How many records of a ring are as near to filling it as what takes this part of its room.
size_t Recorder::as_records(double fullness) const noexcept {
  return static_cast<size_t>(std::min(fullness, 1.0) * static_cast<double>(options_.ring_capacity));
}

// As records, which the same round collects, and leaves in the spool.
size_t Recorder::collect_logits() noexcept {
  if (device_logits_ == nullptr || in_forked_child_) return 0;
  try {
    device_logits_->collect(collector_.ns_per_tick(), *logits_buffer_);
  } catch (...) {
    ++collector_faults_;
  }
  return as_records(device_logits_->fullness());
}

// One that cannot be stored is lost and counted; the others are not. Returns how many records of a
// ring are as near to filling it as these are, or what devices left, to filling theirs.
size_t Recorder::collect_observations() {
  double fullness = 0;
  if (device_observations_ != nullptr && !in_forked_child_) {
    try {
      device_observations_->collect(collector_.ns_per_tick(), observations_);
    } catch (...) {
      ++collector_faults_;
    }
    fullness = device_observations_->fullness();
  }
  const TakenObservations round = observations_.take(collector_.last_step());
  const std::vector<Observation>& taken = round.observations;
  fullness =
      std::max(fullness, static_cast<double>(taken.size()) / ObservationIntake::kMostWaiting);
  const size_t filled = as_records(fullness);
  if (taken.empty()) return filled;
  if (spool_ != nullptr) {
    spool_->add(round);
    observations_.release(round.frames);
  }
  const int64_t start_cpu_ns = detail::read_clock_ns(CLOCK_THREAD_CPUTIME_ID);
  std::array<uint64_t, kStepKinds> of_kind{};
  for (const Observation& observation : taken) {
    if (observation.kind < kStepKinds) ++of_kind[observation.kind];
    try {
      collector_.collect(widened(observation, collector_.last_step()), observation);
    } catch (...) {
      ++collector_faults_;
    }
  }
  if (sampler_ == nullptr) return filled;
  const int64_t cpu_ns = detail::read_clock_ns(CLOCK_THREAD_CPUTIME_ID) - start_cpu_ns;
  const uint64_t inside = std::accumulate(of_kind.begin(), of_kind.end(), uint64_t{0});
  const double part = static_cast<double>(inside) / static_cast<double>(taken.size());
  sampler_->see_drained(of_kind, part * static_cast<double>(cpu_ns));
  return filled;
}

}  // namespace pertoken
