// Lanes: rows of a trace on which intervals only nest, never cross. Perfetto drops a slice that
// crosses another on its row, and regions of interleaved asyncio tasks do cross. Pure functions.
#pragma once

#include <cstdint>
#include <functional>
#include <queue>
#include <unordered_map>
#include <utility>
#include <vector>

namespace pertoken::exporting {

struct Interval {
  int64_t start_ns;
  int64_t end_ns;
};

// Tells, while the intervals of one thread pass in the order of the table, whether they can all go
// on one lane, so that the usual case needs no sort and no memory. It follows two orders, that of
// ends (as spans are recorded) and that of starts; for any other it answers no.
class NestingCheck {
 public:
  void add(Interval interval) {
    if (by_end_) by_end_ = add_by_end(interval);
    if (by_start_) by_start_ = add_by_start(interval);
  }
  // False may be wrong (the intervals were out of order), true never is.
  bool nested() const { return by_end_ || by_start_; }

 private:
  // So many outermost intervals are remembered; one that encloses older ones makes by_end_ false.
  static constexpr size_t kMaxRemembered = size_t{1} << 14;

  bool add_by_end(Interval interval);
  bool add_by_start(Interval interval);

  bool by_end_ = true;
  bool by_start_ = true;
  std::vector<Interval> closed_;  // outermost so far, in order; only the newest kMaxRemembered
  int64_t forgotten_end_ns_ = INT64_MIN;
  std::vector<Interval> open_;
};

// The same question for intervals sorted by start, longer first: a definite answer.
class SortedNestingCheck {
 public:
  // False as soon as an interval crosses an earlier one.
  bool add(Interval interval);

 private:
  std::vector<int64_t> open_ends_ns_;
};

// Places intervals, sorted by start, longer first, on lanes numbered from 0. An interval goes below
// its parent when the parent is the innermost one open on its lane and encloses it, else on the
// lowest empty lane: what looks nested is nested. Memory grows with what is open at a time.
class LaneAssigner {
 public:
  static constexpr int64_t kNoParent = -1;

  uint32_t place(Interval interval, int64_t id, int64_t parent);

 private:
  struct Open {
    int64_t end_ns;
    int64_t id;
  };
  template <typename T>
  using MinHeap = std::priority_queue<T, std::vector<T>, std::greater<T>>;

  bool fits_below(uint32_t lane, Interval interval, int64_t parent);
  void free_lanes_until(int64_t now_ns);

  std::vector<std::vector<Open>> lanes_;
  std::unordered_map<int64_t, uint32_t> lane_of_open_;
  MinHeap<std::pair<int64_t, uint32_t>> occupied_;  // end of the outermost interval, lane
  MinHeap<uint32_t> empty_;
};

}  // namespace pertoken::exporting
