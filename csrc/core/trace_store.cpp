#include "core/trace_store.h"

#include <algorithm>

namespace pertoken {

SpanChunk::SpanChunk(int32_t track, uint32_t capacity)
    : track_(track), capacity_(capacity), rows_(new Row[capacity]) {}

bool SpanChunk::try_append(const StoredSpan& span) {
  if (size_ == capacity_) return false;
  if (size_ == 0) {
    base_seq_ = span.seq;
    base_step_ = span.step == kNoStep ? 0 : span.step;
  } else if (base_step_ == 0 && last_step_ == kNoStep && span.step != kNoStep) {
    base_step_ = span.step;  // the first span of the chunk that belongs to a step
  }
  const int64_t seq_delta = span.seq - base_seq_;
  const int64_t step_delta = span.step == kNoStep ? kNoStepDelta : span.step - base_step_;
  if (seq_delta != static_cast<int32_t>(seq_delta)) return false;
  if (step_delta != static_cast<int32_t>(step_delta)) return false;

  // A record names its parent by 32 bits, so the two are less than 2^32 apart.
  const uint32_t parent_distance =
      span.parent_seq == 0 ? 0 : static_cast<uint32_t>(span.seq - span.parent_seq);
  if (span.dur_ticks >= kLong) long_durations_.emplace(size_, span.dur_ticks);
  rows_[size_] =
      Row{span.start_ticks, static_cast<uint32_t>(std::min<uint64_t>(span.dur_ticks, kLong)),
          span.site,        static_cast<int32_t>(seq_delta),
          parent_distance,  static_cast<int32_t>(step_delta)};
  ++size_;
  last_step_ = std::max(last_step_, span.step);
  last_ticks_ = std::max(last_ticks_, span.start_ticks + span.dur_ticks);
  if (span.step != kNoStep) earliest_step_ = std::min(earliest_step_, span.step);
  return true;
}

StoredSpan SpanChunk::at(uint32_t index) const {
  const Row& row = rows_[index];
  StoredSpan span{};
  span.start_ticks = row.start_ticks;
  span.dur_ticks = row.dur_ticks == kLong ? long_durations_.at(index) : row.dur_ticks;
  span.seq = base_seq_ + row.seq_delta;
  span.parent_seq = row.parent_distance == 0 ? 0 : span.seq - row.parent_distance;
  span.step = row.step_delta == kNoStepDelta ? kNoStep : base_step_ + row.step_delta;
  span.site = row.site;
  span.track = track_;
  return span;
}

std::shared_ptr<const SpanChunk> SpanChunk::copy() const {
  auto chunk = std::make_shared<SpanChunk>(track_, size_);
  std::copy_n(rows_.get(), size_, chunk->rows_.get());
  chunk->size_ = size_;
  chunk->base_seq_ = base_seq_;
  chunk->base_step_ = base_step_;
  chunk->last_step_ = last_step_;
  chunk->earliest_step_ = earliest_step_;
  chunk->last_ticks_ = last_ticks_;
  chunk->long_durations_ = long_durations_;
  return chunk;
}

size_t SpanChunk::bytes_of(uint32_t capacity) {
  return sizeof(SpanChunk) + size_t{capacity} * sizeof(Row);
}

TraceStore::TraceStore(size_t limit_bytes)
    : limit_bytes_(limit_bytes),
      stale_bytes_(std::max<uint64_t>(limit_bytes / 8, 2 * SpanChunk::bytes_of(kMaxChunkRows))) {}

void TraceStore::add_span(const StoredSpan& span) {
  if (span.step != kNoStep && span.step < first_step_) {
    ++spans_dropped_;
    return;
  }
  OpenChunk& open = open_chunks_[span.track];
  const bool goes_on = open.chunk != nullptr && opened_bytes_ - open.opened_at <= stale_bytes_;
  if (goes_on && open.chunk->try_append(span)) return;
  const uint32_t capacity =
      goes_on ? std::min(open.chunk->capacity() * 2, kMaxChunkRows) : kMinChunkRows;
  auto chunk = std::make_shared<SpanChunk>(span.track, capacity);
  chunk->try_append(span);
  chunks_.push_back(chunk);
  bytes_ += chunk->bytes();
  span_bytes_ += chunk->bytes();
  opened_bytes_ += chunk->bytes();
  open = {std::move(chunk), opened_bytes_};
}

bool TraceStore::is_open(const SpanChunk& chunk) const {
  const auto open = open_chunks_.find(chunk.track());
  return open != open_chunks_.end() && open->second.chunk.get() == &chunk;
}

StepRow* TraceStore::step(int64_t number) {
  if (number < first_step_) return nullptr;
  // Numbers that nothing is known of are no reason to hold more than the limit.
  const auto most = static_cast<int64_t>(limit_bytes_ / sizeof(StepRow));
  if (number - first_step_ > 2 * most) evict_steps_below(number - most);
  while (first_step_ + static_cast<int64_t>(steps_.size()) <= number) {
    StepRow row;
    row.step = first_step_ + static_cast<int64_t>(steps_.size());
    steps_.push_back(row);
    bytes_ += sizeof(StepRow);
  }
  return &steps_[static_cast<size_t>(number - first_step_)];
}

StepRow* TraceStore::begin_step(int64_t number) {
  StepRow* row = step(number);
  if (row != nullptr) {
    row->begun = true;
  } else {
    ++steps_evicted_;
  }
  return row;
}

void TraceStore::add_row_valid(const RowValid& row) {
  if (row.step < first_step_) return;
  row_valid_.push_back(row);
  bytes_ += sizeof(RowValid);
}

void TraceStore::add_row(const StoredRow& row) {
  if (row.step < first_step_) return;
  rows_.push_back(row);
  bytes_ += sizeof(StoredRow);
}

void TraceStore::add_row_commit(const RowCommit& commit) {
  if (commit.step < first_step_) return;
  row_commits_.push_back(commit);
  bytes_ += sizeof(RowCommit);
}

void TraceStore::add_token_logits(const TokenLogits& token) {
  if (token.step < first_step_) return;
  token_logits_.push_back(token);
  bytes_ += sizeof(TokenLogits);
}

void TraceStore::add_observation(int64_t step, int64_t newest_step,
                                 const Observation& observation) {
  if (step != kNoStep && step < first_step_) {
    ++observations_late_;
    return;
  }
  bytes_ += observations_.add(step, newest_step, observation);
}

void TraceStore::evict() {
  while (bytes_ > limit_bytes_) {
    if (chunks_.empty() && steps_.empty()) {
      const size_t freed = observations_.evict_oldest();
      bytes_ -= freed;
      if (freed == 0) return;
      continue;
    }
    const bool steps_are_older =
        chunks_.empty() || (chunks_.front()->last_step() == kNoStep && !steps_.empty() &&
                            steps_.front().start_ticks < chunks_.front()->at(0).start_ticks);
    // Where steps have many rows and few spans, one chunk would take all of them along.
    const bool steps_are_larger = !steps_.empty() && span_bytes_ < bytes_ / 2;
    if (steps_are_older || steps_are_larger) {
      evict_steps_below(first_step_ + 1 + static_cast<int64_t>(steps_.size() / 64));
    } else {
      evict_steps_below(chunks_.front()->last_step() + 1);
      drop_front_chunk();
    }
    while (!chunks_.empty() && chunks_.front()->last_step() != kNoStep &&
           chunks_.front()->last_step() < first_step_) {
      drop_front_chunk();
    }
  }
}

void TraceStore::evict_steps_below(int64_t first) {
  while (first_step_ < first && !steps_.empty()) {
    if (steps_.front().begun) ++steps_evicted_;
    steps_.pop_front();
    bytes_ -= sizeof(StepRow);
    ++first_step_;
  }
  first_step_ = std::max(first_step_, first);
  while (!row_valid_.empty() && row_valid_.front().step < first_step_) {
    row_valid_.pop_front();
    bytes_ -= sizeof(RowValid);
  }
  while (!rows_.empty() && rows_.front().step < first_step_) {
    rows_.pop_front();
    bytes_ -= sizeof(StoredRow);
  }
  while (!row_commits_.empty() && row_commits_.front().step < first_step_) {
    row_commits_.pop_front();
    bytes_ -= sizeof(RowCommit);
  }
  while (!token_logits_.empty() && token_logits_.front().step < first_step_) {
    token_logits_.pop_front();
    bytes_ -= sizeof(TokenLogits);
  }
  bytes_ -= observations_.evict_below(first_step_);
}

void TraceStore::drop_front_chunk() {
  const std::shared_ptr<SpanChunk> chunk = std::move(chunks_.front());
  chunks_.pop_front();
  forget(*chunk);
}

void TraceStore::forget(const SpanChunk& chunk) {
  bytes_ -= chunk.bytes();
  span_bytes_ -= chunk.bytes();
  spans_dropped_ += chunk.size();
  if (is_open(chunk)) open_chunks_.erase(chunk.track());
}

void TraceStore::evict_before(uint64_t ticks) {
  int64_t first = first_step_;
  steps_.for_each([&](const StepRow& row) {
    if (!row.begun) return true;  // it goes with the next one that does, unless it still comes
    const bool is_over = std::max(row.start_ticks, row.end_ticks) < ticks;
    if (!is_over || (row.end_ticks == 0 && still_runs(row))) return false;
    first = row.step + 1;
    return true;
  });
  evict_steps_below(first);
  std::erase_if(chunks_, [&](const std::shared_ptr<SpanChunk>& chunk) {
    const bool is_over = chunk->last_ticks() < ticks && chunk->last_step() < first_step_;
    if (is_over) forget(*chunk);
    return is_over;
  });
}

// A thread runs its steps one after the other; the record of an end may have been dropped.
bool TraceStore::still_runs(const StepRow& row) const {
  bool is_followed = false;
  steps_.for_each(
      [&](const StepRow& later) {
        is_followed = later.begun && later.track == row.track;
        return !is_followed;
      },
      static_cast<size_t>(row.step + 1 - first_step_));
  return !is_followed;
}

StoreSnapshot TraceStore::snapshot() const {
  StoreSnapshot snapshot;
  snapshot.first_step = first_step_;
  snapshot.chunks.reserve(chunks_.size());
  for (const auto& chunk : chunks_) {
    snapshot.chunks.push_back(is_open(*chunk) ? chunk->copy() : chunk);
  }
  snapshot.steps = steps_.copy();
  snapshot.row_valid = row_valid_.copy();
  snapshot.rows = rows_.copy();
  snapshot.row_commits = row_commits_.copy();
  snapshot.token_logits = token_logits_.copy();
  snapshot.observations = observations_.snapshot();
  // Of steps that were observed by several threads at once, some may be held on to.
  std::erase_if(snapshot.observations, [this](const auto& observation) {
    return observation->step != kNoStep && observation->step < first_step_;
  });
  return snapshot;
}

uint64_t TraceStore::spans_evicted() const {
  uint64_t count = spans_dropped_;
  for (const auto& chunk : chunks_) {
    if (!chunk->holds_steps_below(first_step_)) continue;
    for (uint32_t i = 0; i < chunk->size(); ++i) {
      const int64_t step = chunk->at(i).step;
      if (step != kNoStep && step < first_step_) ++count;
    }
  }
  return count;
}

std::unordered_set<int32_t> TraceStore::tracks() const {
  std::unordered_set<int32_t> tracks;
  for (const auto& chunk : chunks_) tracks.insert(chunk->track());
  steps_.for_each([&](const StepRow& row) {
    if (row.begun) tracks.insert(row.track);
  });
  return tracks;
}

uint64_t TraceStore::oldest_step_ticks(uint64_t otherwise) const {
  uint64_t oldest = otherwise;
  steps_.for_each([&](const StepRow& row) {
    if (row.begun) oldest = std::min(oldest, row.start_ticks);
  });
  return oldest;
}

uint64_t TraceStore::oldest_ticks(uint64_t otherwise) const {
  uint64_t oldest = otherwise;
  if (!steps_.empty() && steps_.front().begun) {
    oldest = std::min(oldest, steps_.front().start_ticks);
  }
  // A chunk is in order of completion, so its first span need not have begun first; the spans
  // that enclose it are at most as old as the store is deep, and the clock keeps a margin.
  for (const auto& chunk : chunks_) {
    if (chunk->size() > 0) oldest = std::min(oldest, chunk->at(0).start_ticks);
  }
  return oldest;
}

}  // namespace pertoken
