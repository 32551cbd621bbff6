// What becomes of records once they have left their rings: they go into the store and into the
// aggregates, and all that learns of steps is told. Owned by a recorder, and used by one thread at
// a time, under that one's mutex: in a drain round, or by what replays a spool. None of it is hot.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <unordered_set>

#include "core/activity.h"
#include "core/aggregates.h"
#include "core/device_source.h"
#include "core/observation.h"
#include "core/record.h"
#include "core/request_tracker.h"
#include "core/sampler.h"
#include "core/step_triggers.h"
#include "core/thread_buffer.h"
#include "core/trace_store.h"
#include "core/tracks.h"

namespace pertoken {

class Collector {
 public:
  // Of a thread's track, the last number of a span; below 0 where none is known.
  using LastSeq = std::function<int64_t(int32_t track)>;

  explicit Collector(size_t store_limit_bytes) : store_(store_limit_bytes) {}

  // What is told of each step that was recorded; it outlives this. Null, as at first: nothing.
  void set_sampler(Sampler* sampler) { sampler_ = sampler; }
  void set_rate(double ns_per_tick);
  double ns_per_tick() const { return ns_per_tick_; }

  // All of these throw std::bad_alloc; what they were given is then lost, and nothing else.
  //
  // In the order in which the thread has pushed them.
  void collect(const Record& record, ThreadBuffer::Progress& progress, int32_t track);
  // `step` is that of the observation, widened.
  void collect(int64_t step, const Observation& observation);
  // After the records of its step.
  void collect(const DeviceSpan& span, const LastSeq& last_seq_of);

  // Drops what there is no room for, and what ended longer ago than `keep_ns`; 0: any time. That
  // long ago is meant from now or, from when something fires, from then, until let_go().
  void evict(uint64_t keep_ns);
  void see_signal(int number);
  void let_go() { held_ticks_ = 0; }
  // Of which nothing is held, and which are not among these.
  void forget_tracks(std::unordered_set<int32_t> used);

  // The reference for widening step numbers.
  int64_t last_step() const { return last_step_; }
  void set_last_step(int64_t step) { last_step_ = step; }
  int64_t newest_step() const { return newest_step_; }

  TraceStore& store() { return store_; }
  const TraceStore& store() const { return store_; }
  Aggregates& aggregates() { return aggregates_; }
  RequestTracker& requests() { return requests_; }
  StepTriggers& triggers() { return triggers_; }
  Tracks& tracks() { return tracks_; }
  const Activity& activity() const { return activity_; }

 private:
  void collect_span(const Record& record, int64_t step, ThreadBuffer::Progress& progress,
                    int32_t track);
  void begin_step(const Record& record, int64_t step, ThreadBuffer::Progress& progress,
                  int32_t track);
  void see_detail(const Record& record, int64_t step, ThreadBuffer::Progress& progress);
  void end_step(const Record& record, int64_t step, ThreadBuffer::Progress& progress);
  void commit(const Record& record, int64_t step);
  void collect_device_step(const DeviceSpan& span);
  void hold_if_fired();
  double root_time_ns(const StepCost& cost, uint64_t dur_ticks) const noexcept;
  void see_step(const Record& end, const StepRow& row, double root_ns, const OpenStep& ended,
                ThreadBuffer::Progress& progress);
  void see_logits(const Record& record, int64_t step, ThreadBuffer::Progress& progress);

  Sampler* sampler_ = nullptr;
  double ns_per_tick_ = 1.0;
  int64_t last_step_ = 0;
  int64_t newest_step_ = -1;   // of those collected
  uint64_t newest_ticks_ = 0;  // when the last of them ended
  uint64_t held_ticks_ = 0;    // likewise, when something fired that is to be dumped; 0: nothing
  TraceStore store_;
  Aggregates aggregates_;
  RequestTracker requests_{aggregates_};
  StepTriggers triggers_;
  Tracks tracks_;
  Activity activity_;
};

}  // namespace pertoken
