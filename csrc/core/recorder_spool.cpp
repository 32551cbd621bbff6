// What a recorder leaves in its spool, and how another one takes it in again.
#include <algorithm>
#include <array>
#include <optional>
#include <utility>

#include "core/recorder.h"
#include "core/spooled_observation.h"
#include "core/string_table.h"

namespace pertoken {

namespace {

// Two samples this far apart give the rate to some 25 parts per million.
constexpr int64_t kFirstBaselineNs = 2'000'000;
constexpr int kMostFirstSamples = 20'000;
// No count of a recording comes near; sums with it stay far from the ends of 64 bits.
constexpr int64_t kLargestCount = int64_t{1} << 62;

bool is_record(const Record& record, size_t sites) {
  switch (record.type()) {
    case RecordType::kSpan:
    case RecordType::kGap:
      return record.detail() < sites;
    case RecordType::kStepBegin:
      return (record.detail() & kStepKindMask) < kStepKinds;
    case RecordType::kRow:
      return record.detail() < kStepKinds;
    case RecordType::kStepEnd:
    case RecordType::kCommit:
    case RecordType::kRowValid:
    case RecordType::kRowCommit:
    case RecordType::kStepDetail:
    case RecordType::kTokenLogits:
    case RecordType::kUnrecorded:
    case RecordType::kLogitsTime:
      return true;
  }
  return false;
}

bool is_count(int64_t value) { return value >= -1 && value < kLargestCount; }

}  // namespace

void Recorder::spool_into(const SpoolOptions& options) {
  auto spool = std::make_unique<Spool>(options);
  // A process that is killed at once leaves times, too.
  std::array<ClockSample, 2> samples{sample_clock(), sample_clock()};
  for (int i = 0; i < kMostFirstSamples; ++i) {
    if (samples[1].boot_ns - samples[0].boot_ns >= kFirstBaselineNs) break;
    samples[1] = sample_clock();
  }
  spool->add(samples);
  const std::lock_guard lock(mutex_);
  spool_ = std::move(spool);
  observations_.spool_into(options.folder + "/observations");
}

void Recorder::spool_clock_locked() {
  if (spool_ == nullptr) return;
  const uint64_t fresh = clock_.kept_count() - samples_spooled_;
  const std::span<const ClockSample> kept = clock_.kept();
  spool_->add(kept.last(std::min<uint64_t>(fresh, kept.size())));
  samples_spooled_ = clock_.kept_count();
}

void Recorder::spool_losses_locked() {
  const RecorderLosses losses = record_losses_locked();
  spool_->add(LossesFrame{losses.records_dropped, losses.recording_faults, losses.collector_faults,
                          /*frames_lost=*/0});
}

void Recorder::spool_batch_locked(const ThreadBuffer& buffer, std::span<const Record> records) {
  spool_->add(RecordBatch{buffer.track, buffer.tid, buffer.name, buffer.ring.taken(),
                          collector_.last_step(), buffer.progress.last_seq, records});
}

void Recorder::replay_clock(std::span<const ClockSample> samples) {
  const std::lock_guard lock(mutex_);
  replayed_clock_ = fit(samples);
  collector_.set_rate(replayed_clock_->ns_per_tick());
  collector_.aggregates().logits().follow();
}

void Recorder::replay_from(int64_t first_step) {
  const std::lock_guard lock(mutex_);
  collector_.store().begin_at(first_step);
}

void Recorder::replay_round() {
  const std::lock_guard lock(mutex_);
  collector_.requests().end_round();
  collector_.requests().begin_round();
}

bool Recorder::replay(const RecordBatch& batch, bool goes_on) {
  const size_t sites = site_names().size();
  const std::lock_guard lock(mutex_);
  if (!is_count(batch.last_step) || !is_count(batch.last_seq) || batch.track < 0) return false;
  auto [progress, is_new] = replayed_.try_emplace(batch.track);
  if (is_new && batch.tid != kNoThread) {
    collector_.tracks().add_thread(batch.track, batch.tid, std::string(batch.thread_name));
  }
  if (!goes_on) {
    collector_.set_last_step(batch.last_step);
    progress->second.last_seq = batch.last_seq;
  }
  for (const Record& record : batch.records) {
    if (!is_record(record, sites)) return false;
    collector_.collect(record, progress->second, batch.track);
  }
  collector_.store().evict();
  return true;
}

bool Recorder::replay_observation(std::span<const std::byte> frame, uint32_t site) {
  std::optional<SpooledObservation> read = read_observation(frame);
  if (!read || !is_count(read->last_step) || site >= site_names().size()) return false;
  read->observation.site = site;
  const std::lock_guard lock(mutex_);
  collector_.collect(widened(read->observation, read->last_step), read->observation);
  collector_.store().evict();
  return true;
}

void Recorder::replay_losses(const LossesFrame& losses, uint64_t observations_dropped) {
  const std::lock_guard lock(mutex_);
  replayed_losses_.records_dropped = losses.records_dropped;
  replayed_losses_.recording_faults = losses.recording_faults;
  replayed_losses_.collector_faults = losses.collector_faults;
  replayed_losses_.observations_dropped = observations_dropped;
}

}  // namespace pertoken
