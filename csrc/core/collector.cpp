#include "core/collector.h"

#include <algorithm>
#include <bit>
#include <optional>
#include <utility>

namespace pertoken {

void Collector::set_rate(double ns_per_tick) {
  ns_per_tick_ = ns_per_tick;
  requests_.set_rate(ns_per_tick);
  if (sampler_ != nullptr) sampler_->set_rate(ns_per_tick);
  triggers_.learn(aggregates_, ns_per_tick);
}

void Collector::collect(const Record& record, ThreadBuffer::Progress& progress, int32_t track) {
  activity_.add(record);
  const int64_t step =
      record.step == kNone32 ? kNoStep : (last_step_ = widen(last_step_, record.step));
  newest_step_ = std::max(newest_step_, step);
  switch (record.type()) {
    case RecordType::kSpan:
    case RecordType::kGap:
      collect_span(record, step, progress, track);
      break;
    case RecordType::kStepBegin:
      begin_step(record, step, progress, track);
      break;
    case RecordType::kStepDetail:
      see_detail(record, step, progress);
      break;
    case RecordType::kUnrecorded:
      if (OpenStep* const open = progress.steps.find(step)) {
        open->unrecorded.passed_on += static_cast<uint32_t>(record.start_ticks);
        open->unrecorded.moved += static_cast<uint32_t>(record.end_ticks);
        open->unrecorded.move_ticks += record.seq;
      }
      break;
    case RecordType::kStepEnd:
      end_step(record, step, progress);
      break;
    case RecordType::kCommit:
      commit(record, step);
      break;
    case RecordType::kRowValid:
      requests_.see_row(step, static_cast<uint32_t>(record.end_ticks >> 32),
                        static_cast<uint32_t>(record.end_ticks));
      store_.add_row_valid({step, static_cast<uint32_t>(record.start_ticks),
                            static_cast<uint32_t>(record.end_ticks >> 32),
                            static_cast<uint32_t>(record.end_ticks)});
      break;
    case RecordType::kRow:
      store_.add_row({step, static_cast<uint32_t>(record.start_ticks), record.seq,
                      static_cast<uint32_t>(record.end_ticks >> 32),
                      static_cast<uint32_t>(record.end_ticks), record.detail()});
      break;
    case RecordType::kRowCommit:
      requests_.commit_row(step, static_cast<uint32_t>(record.start_ticks), record.seq,
                           static_cast<uint32_t>(record.end_ticks));
      store_.add_row_commit({step, static_cast<uint32_t>(record.start_ticks),
                             static_cast<uint32_t>(record.end_ticks >> 32),
                             static_cast<uint32_t>(record.end_ticks)});
      break;
    case RecordType::kTokenLogits:
      store_.add_token_logits(token_logits_of(record, step));
      aggregates_.logits().see(token_logits_of(record, step));
      see_logits(record, step, progress);
      break;
    case RecordType::kLogitsTime:
      see_logits(record, step, progress);
      break;
  }
}

void Collector::collect_span(const Record& record, int64_t step, ThreadBuffer::Progress& progress,
                             int32_t track) {
  const int64_t seq =
      progress.last_seq < 0 ? int64_t{record.seq} : widen(progress.last_seq, record.seq);
  progress.last_seq = seq;
  const int64_t parent_seq =
      record.parent_seq == 0 ? 0 : seq - static_cast<uint32_t>(record.seq - record.parent_seq);
  const uint64_t dur_ticks = record.end_ticks - record.start_ticks;
  newest_ticks_ = std::max(newest_ticks_, record.end_ticks);
  // A gap lies in no step, but its time is part of the token that the next step commits.
  const int64_t inside = record.type() == RecordType::kGap ? kNoStep : step;
  store_.add_span({record.start_ticks, dur_ticks, seq, parent_seq, inside, record.detail(), track});
  OpenStep* const open = step == kNoStep ? nullptr : progress.steps.find(step);
  const auto kind =
      step == kNoStep ? kOutsideSteps : static_cast<uint8_t>(open ? open->kind : StepKind::kOther);
  const uint64_t own_ticks = progress.own_time.end_span(seq, parent_seq, dur_ticks);
  const double weight = open != nullptr && inside != kNoStep ? open->weight : 1.0;
  if (open != nullptr) ++open->records;
  aggregates_.add_span(record.detail(), kind, to_ns(dur_ticks, ns_per_tick_),
                       weight * static_cast<double>(to_ns(own_ticks, ns_per_tick_)));
}

void Collector::begin_step(const Record& record, int64_t step, ThreadBuffer::Progress& progress,
                           int32_t track) {
  const auto kind = step_kind(record.detail());
  const bool is_sampled = (record.detail() & kStepSampled) != 0;
  progress.steps.begin(step, kind).weight = is_sampled ? 0 : 1;
  if (!is_sampled) ++aggregates_.steps(kind).detailed;
  const auto rows = static_cast<uint32_t>(record.end_ticks >> 32);
  const auto query_len = static_cast<uint32_t>(record.end_ticks);
  requests_.begin_step(
      {step, kind, rows, query_len, record.detail(), record.seq, record.start_ticks});
  if (StepRow* row = store_.begin_step(step)) {
    row->start_ticks = record.start_ticks;
    row->rows = rows;
    row->query_len = query_len;
    row->past = record.parent_seq;
    row->generation = record.seq;
    row->track = track;
    row->detail = record.detail();
  }
}

void Collector::see_detail(const Record& record, int64_t step, ThreadBuffer::Progress& progress) {
  auto weight = std::bit_cast<double>(record.start_ticks);
  if (!(weight >= 1 && weight < kLargestWeight)) weight = 0;
  const int level = static_cast<int>(record.seq);
  if (OpenStep* const open = progress.steps.find(step)) {
    const bool is_full = record.parent_seq != 0;
    open->level = level;
    open->exact_weight = weight;
    // Sums over steps are of those that got all there is to get.
    open->weight = is_full ? weight : 0;
    if (is_full) ++aggregates_.steps(open->kind).detailed;
  }
  if (StepRow* row = store_.step(step)) {
    row->inside = record.detail();
    row->weight = weight;
  }
}

void Collector::end_step(const Record& record, int64_t step, ThreadBuffer::Progress& progress) {
  requests_.end_step(step, record.start_ticks, record.detail());
  const std::optional<OpenStep> ended = progress.steps.end(step);
  StepRow* row = store_.step(step);
  if (row == nullptr || !row->begun) return;
  row->end_ticks = record.start_ticks;
  const StepCost cost = StepCost::of(record.end_ticks);
  row->observe_ticks = cost.observing;
  row->detail |= record.detail() & (kStepFailed | kStepBare | kStepSeveral);
  const uint64_t dur_ticks = row->end_ticks - row->start_ticks;
  const double root_ns = root_time_ns(cost, dur_ticks);
  activity_.step_ticks += dur_ticks;
  activity_.timed_roots += root_ns > 0 ? 1 : 0;
  activity_.root_ns += root_ns;
  if (sampler_ != nullptr && ended) see_step(record, *row, root_ns, *ended, progress);
  newest_ticks_ = std::max(newest_ticks_, row->end_ticks);
  triggers_.see_step(step, step_kind(row->detail), dur_ticks);
  hold_if_fired();
}

void Collector::commit(const Record& record, int64_t step) {
  requests_.commit(step, static_cast<uint32_t>(record.end_ticks),
                   static_cast<uint32_t>(record.start_ticks),
                   (record.detail() & kCommitTotal) != 0);
  if (StepRow* row = store_.step(step)) {
    row->committed = static_cast<uint32_t>(record.end_ticks);
    row->committed_before = static_cast<uint32_t>(record.start_ticks);
    row->committed_is_total = (record.detail() & kCommitTotal) != 0;
  }
}

void Collector::collect(int64_t step, const Observation& observation) {
  aggregates_.add_values(observation.site, observation.kind, observation.weight,
                         observation.values);
  store_.add_observation(step, last_step_, observation);
  triggers_.see_values(step, observation);
  hold_if_fired();
}

void Collector::collect(const DeviceSpan& span, const LastSeq& last_seq_of) {
  if (span.is_step) collect_device_step(span);
  if (span.site == kNoSite) return;
  StreamTrack& track = tracks_.of_stream(span, last_seq_of);
  track.last_seq = widen(track.last_seq, span.seq);
  const int64_t seq = track.last_seq;
  const int64_t parent_seq =
      span.parent_seq == 0 ? 0 : seq - static_cast<uint32_t>(span.seq - span.parent_seq);
  const int64_t step = span.step == kNone32 ? kNoStep : widen(last_step_, span.step);
  store_.add_span({span.start_ticks, span.end_ticks - span.start_ticks, seq, parent_seq, step,
                   span.site, track.track});
}

void Collector::collect_device_step(const DeviceSpan& span) {
  if (span.step == kNone32) return;
  StepRow* row = store_.step(widen(last_step_, span.step));
  if (row == nullptr || !row->begun) return;
  const bool is_first = row->gpu_end_ticks == 0;
  row->gpu_start_ticks =
      is_first ? span.start_ticks : std::min(row->gpu_start_ticks, span.start_ticks);
  row->gpu_end_ticks = std::max(row->gpu_end_ticks, span.end_ticks);
  row->gpu_idle_ticks = std::max(row->gpu_idle_ticks, span.idle_ticks);
}

// The last seconds are those before the last thing that ended, so that a pause loses nothing.
void Collector::evict(uint64_t keep_ns) {
  if (keep_ns != 0) {
    const uint64_t until_ticks = held_ticks_ != 0 ? held_ticks_ : newest_ticks_;
    const double keep_ticks = static_cast<double>(keep_ns) / ns_per_tick_;
    if (keep_ticks < static_cast<double>(until_ticks)) {
      store_.evict_before(until_ticks - static_cast<uint64_t>(keep_ticks));
    }
  }
  store_.evict();
}

void Collector::see_signal(int number) {
  triggers_.see_signal(number);
  hold_if_fired();
}

void Collector::hold_if_fired() {
  if (triggers_.has_fired() && held_ticks_ == 0) held_ticks_ = newest_ticks_;
}

void Collector::forget_tracks(std::unordered_set<int32_t> used) {
  used.merge(store_.tracks());
  tracks_.keep(used);
}

}  // namespace pertoken
