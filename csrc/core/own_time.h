// The time of a span that none of its children took, found as the spans of one track end: children
// end before their parent, so that what they took waits for it under its number. Used by the
// collector, one a track.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace pertoken {

class OwnTime {
 public:
  // A span ends; returns its own ticks. `parent_seq` 0: it has no parent.
  uint64_t end_span(int64_t seq, int64_t parent_seq, uint64_t dur_ticks) {
    uint64_t children = 0;
    // Mostly the last one. Not where spans of asyncio's tasks overlap.
    const auto own = place_of(seq);
    if (own != waiting_.begin() && (own - 1)->seq == seq) {
      children = (own - 1)->children_ticks;
      waiting_.erase(own - 1);
    }
    if (parent_seq > 0) add(parent_seq, dur_ticks);
    return dur_ticks - std::min(children, dur_ticks);
  }

 private:
  struct Waiting {
    int64_t seq;
    uint64_t children_ticks;
  };
  // Of open spans, and of those whose records were dropped; the oldest are given up beyond it.
  static constexpr size_t kDeepest = 256;

  // Behind the last one whose number is not larger.
  std::vector<Waiting>::iterator place_of(int64_t seq) {
    auto at = waiting_.end();
    while (at != waiting_.begin() && (at - 1)->seq > seq) --at;
    return at;
  }

  void add(int64_t parent_seq, uint64_t ticks) {
    const auto at = place_of(parent_seq);
    if (at != waiting_.begin() && (at - 1)->seq == parent_seq) {
      (at - 1)->children_ticks += ticks;
      return;
    }
    waiting_.insert(at, {parent_seq, ticks});
    if (waiting_.size() > kDeepest) waiting_.erase(waiting_.begin());
  }

  std::vector<Waiting> waiting_;  // parents of spans that have ended, ascending
};

}  // namespace pertoken
