// The last steps of a recording, whole, within a limit in bytes. Written by the collector, read by
// snapshots, both under the recorder's mutex; full chunks are immutable and shared with snapshots.
//
// Spans are kept in chunks, one track a chunk, 28 bytes a span. When the limit is passed, the
// oldest chunk goes and with it every step that has a span in it, so that what is left is whole.
// Steps without spans go by age.
#pragma once

#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "core/block_queue.h"
#include "core/observation_store.h"
#include "core/record.h"
#include "core/token_logits.h"

namespace pertoken {

// A span with its numbers widened to 64 bits. `seq` counts the spans of its track from 1.
struct StoredSpan {
  uint64_t start_ticks;
  uint64_t dur_ticks;
  int64_t seq;
  int64_t parent_seq;  // 0 when none
  int64_t step;        // kNoStep when outside any
  uint32_t site;
  int32_t track;
};

class SpanChunk {
 public:
  SpanChunk(int32_t track, uint32_t capacity);

  // False when the chunk is full or a number lies too far from the chunk's own to be packed.
  bool try_append(const StoredSpan& span);
  StoredSpan at(uint32_t index) const;
  // A copy that shares nothing with this chunk, as large as its contents.
  std::shared_ptr<const SpanChunk> copy() const;

  uint32_t size() const { return size_; }
  uint32_t capacity() const { return capacity_; }
  int32_t track() const { return track_; }
  int64_t last_step() const { return last_step_; }  // the highest step in it, kNoStep when none
  bool holds_steps_below(int64_t step) const { return earliest_step_ < step; }
  uint64_t last_ticks() const { return last_ticks_; }  // when the last of its spans ended
  size_t bytes() const { return bytes_of(capacity_); }
  static size_t bytes_of(uint32_t capacity);

 private:
  static constexpr uint32_t kLong = std::numeric_limits<uint32_t>::max();
  static constexpr int32_t kNoStepDelta = std::numeric_limits<int32_t>::min();

  struct Row {
    uint64_t start_ticks;
    uint32_t dur_ticks;  // kLong: in long_durations_
    uint32_t site;
    int32_t seq_delta;         // from base_seq_
    uint32_t parent_distance;  // seq - parent_seq, 0 when none
    int32_t step_delta;        // from base_step_
  } __attribute__((packed));
  static_assert(sizeof(Row) == 28);

  const int32_t track_;
  const uint32_t capacity_;
  uint32_t size_ = 0;
  int64_t base_seq_ = 0;
  int64_t base_step_ = 0;
  int64_t last_step_ = kNoStep;
  int64_t earliest_step_ = std::numeric_limits<int64_t>::max();
  uint64_t last_ticks_ = 0;
  std::unique_ptr<Row[]> rows_;
  std::unordered_map<uint32_t, uint64_t> long_durations_;  // over 2^32 ticks, about a second
};

struct StepRow {
  uint64_t start_ticks = 0;
  uint64_t end_ticks = 0;        // 0 while it runs
  uint64_t gpu_start_ticks = 0;  // when the first device reached it, on the host's axis
  uint64_t gpu_end_ticks = 0;    // when the last one left it; 0: not measured
  uint64_t gpu_idle_ticks = 0;   // of the device that waited longest
  int64_t step = 0;
  uint32_t rows = kNone32;
  uint32_t query_len = kNone32;
  uint32_t past = kNone32;
  uint32_t committed = kNone32;   // tokens: of each row, or of all when committed_is_total
  uint32_t committed_before = 0;  // tokens of each row, by earlier steps of the generation
  uint32_t generation = kNone32;
  int32_t track = -1;
  uint64_t observe_ticks = 0;                                 // of its time, what observing took
  uint32_t detail = static_cast<uint32_t>(StepKind::kOther);  // kind and flags, see record.h
  uint32_t inside = 0;  // what was recorded in it, where kStepSampled is set: see step_detail.h
  double weight = 0;    // 1 / the probability of that; 0 of none
  bool committed_is_total = false;
  bool begun = false;  // false: only a gap in the numbers
};

// What a padding mask leaves valid of one row of a step.
struct RowValid {
  int64_t step;
  uint32_t row;
  uint32_t context_tokens;  // before the step, kNone32 unknown
  uint32_t query_tokens;    // of those fed
};

// One row of a step as the engine told it: a sequence of its own, with its own phase.
struct StoredRow {
  int64_t step;
  uint32_t row;
  uint32_t generation;
  uint32_t query_len;
  uint32_t context_len;
  uint32_t phase;
};

// What such a row was given; it may be told long after the step.
struct RowCommit {
  int64_t step;
  uint32_t row;
  uint32_t committed_before;  // by earlier steps, to the row's sequence
  uint32_t committed;
};

struct StoreSnapshot {
  std::vector<std::shared_ptr<const SpanChunk>> chunks;
  std::vector<StepRow> steps;
  std::vector<RowValid> row_valid;
  std::vector<StoredRow> rows;
  std::vector<RowCommit> row_commits;
  std::vector<TokenLogits> token_logits;
  // Of steps that are held, and of none.
  std::vector<std::shared_ptr<const StoredObservation>> observations;
  int64_t first_step = 0;  // steps below it are gone, and so are their spans
};

class TraceStore {
 public:
  explicit TraceStore(size_t limit_bytes);

  // Steps below it count as gone before anything is added.
  void begin_at(int64_t first_step) { evict_steps_below(first_step); }
  void add_span(const StoredSpan& span);
  // The row of a step, made when it is new; nullptr when the step was evicted already.
  StepRow* step(int64_t number);
  // The same, for the record that begins it: a step that comes too late counts as evicted.
  StepRow* begin_step(int64_t number);
  void add_row_valid(const RowValid& row);
  void add_row(const StoredRow& row);
  void add_row_commit(const RowCommit& commit);
  void add_token_logits(const TokenLogits& token);
  // `step` is that of the observation, widened.
  void add_observation(int64_t step, int64_t newest_step, const Observation& observation);
  // Of which any span or step is held.
  std::unordered_set<int32_t> tracks() const;
  // No more spans of this track will come.
  void close_track(int32_t track) { open_chunks_.erase(track); }
  // Drops the oldest whole steps until the store fits its limit.
  void evict();
  // Drops the oldest whole steps, as far as they ended before; one that runs stays, and all after
  // it. Spans outside steps go with their chunks.
  void evict_before(uint64_t ticks);

  StoreSnapshot snapshot() const;
  size_t bytes() const { return bytes_; }
  int64_t first_step() const { return first_step_; }
  uint64_t steps_evicted() const { return steps_evicted_; }
  uint64_t observations_evicted() const { return observations_.evicted() + observations_late_; }
  // Spans that were stored and are no longer part of a snapshot.
  uint64_t spans_evicted() const;
  // The earliest start of a step still held; `otherwise` when there is none. Looks at all steps.
  uint64_t oldest_step_ticks(uint64_t otherwise) const;
  // The start of the oldest span or step still held; `otherwise` when there is none.
  uint64_t oldest_ticks(uint64_t otherwise) const;

 private:
  static constexpr uint32_t kMinChunkRows = 256;
  static constexpr uint32_t kMaxChunkRows = 8192;

  struct OpenChunk {
    std::shared_ptr<SpanChunk> chunk;
    uint64_t opened_at = 0;  // opened_bytes_ then
  };

  bool is_open(const SpanChunk& chunk) const;
  bool still_runs(const StepRow& row) const;
  void forget(const SpanChunk& chunk);
  void evict_steps_below(int64_t first);
  void drop_front_chunk();

  const size_t limit_bytes_;
  // Once so many bytes of chunks were opened after it, a chunk is closed: that of a thread which
  // seldom records would else reach from the oldest step to the newest, and take all with it.
  const uint64_t stale_bytes_;
  size_t bytes_ = 0;           // of all that is held
  size_t span_bytes_ = 0;      // of the chunks
  uint64_t opened_bytes_ = 0;  // of all chunks there ever were
  int64_t first_step_ = 0;
  uint64_t steps_evicted_ = 0;
  uint64_t spans_dropped_ = 0;                          // in chunks that are gone, or on arrival
  std::deque<std::shared_ptr<SpanChunk>> chunks_;       // oldest first
  std::unordered_map<int32_t, OpenChunk> open_chunks_;  // by track
  BlockQueue<StepRow> steps_;                           // first_step_ and on
  BlockQueue<RowValid> row_valid_;
  BlockQueue<StoredRow> rows_;
  BlockQueue<RowCommit> row_commits_;
  BlockQueue<TokenLogits> token_logits_;
  ObservationStore observations_;
  uint64_t observations_late_ = 0;  // that came when their step had gone
};

}  // namespace pertoken
