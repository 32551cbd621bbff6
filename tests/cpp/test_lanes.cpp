// Lanes against a plain comparison of all pairs: intervals on one lane never cross.
#include <algorithm>
#include <cstdint>
#include <random>
#include <tuple>
#include <vector>

#include "check.h"
#include "export/lanes.h"

using namespace pertoken::exporting;

namespace {

bool cross(Interval a, Interval b) {
  if (b.start_ns < a.start_ns) std::swap(a, b);
  return a.start_ns < b.start_ns && b.start_ns < a.end_ns && a.end_ns < b.end_ns;
}

bool any_cross(const std::vector<Interval>& intervals) {
  for (const Interval& a : intervals) {
    for (const Interval& b : intervals) {
      if (cross(a, b)) return true;
    }
  }
  return false;
}

std::vector<Interval> random_intervals(std::mt19937& random, size_t most) {
  std::vector<Interval> intervals(random() % (most + 1));
  for (Interval& interval : intervals) {
    interval.start_ns = static_cast<int64_t>(random() % 20);
    interval.end_ns = interval.start_ns + static_cast<int64_t>(random() % 8);
  }
  return intervals;
}

void sort_by_start(std::vector<Interval>& intervals) {
  std::sort(intervals.begin(), intervals.end(), [](Interval a, Interval b) {
    return std::tuple(a.start_ns, -a.end_ns) < std::tuple(b.start_ns, -b.end_ns);
  });
}

void sort_by_end(std::vector<Interval>& intervals) {
  std::sort(intervals.begin(), intervals.end(), [](Interval a, Interval b) {
    return std::tuple(a.end_ns, -a.start_ns) < std::tuple(b.end_ns, -b.start_ns);
  });
}

bool nested(const std::vector<Interval>& intervals) {
  NestingCheck check;
  for (const Interval& interval : intervals) check.add(interval);
  return check.nested();
}

}  // namespace

TEST(nesting_is_found_in_either_order_and_never_wrongly) {
  std::mt19937 random(1);
  int crossing = 0;
  for (int round = 0; round < 5'000; ++round) {
    std::vector<Interval> intervals = random_intervals(random, 6);
    const bool expected = !any_cross(intervals);
    crossing += !expected;
    if (nested(intervals)) CHECK(expected);
    sort_by_end(intervals);
    CHECK_EQ(nested(intervals), expected);
    sort_by_start(intervals);
    CHECK_EQ(nested(intervals), expected);
    SortedNestingCheck sorted;
    CHECK_EQ(std::all_of(intervals.begin(), intervals.end(),
                         [&](Interval interval) { return sorted.add(interval); }),
             expected);
  }
  CHECK(crossing > 500);
  CHECK(crossing < 4'500);
}

TEST(nesting_stays_right_past_what_is_remembered) {
  constexpr int64_t kCount = 100'000;
  const auto after_many = [](std::vector<Interval> last) {
    NestingCheck check;
    for (int64_t i = 0; i < kCount; ++i) check.add({10 * i, 10 * i + 5});
    for (const Interval& interval : last) check.add(interval);
    return check.nested();
  };
  CHECK(after_many({}));
  CHECK(after_many({{10 * kCount - 40, 10 * kCount}}));
  CHECK(!after_many({{10 * kCount - 37, 10 * kCount}}));
  CHECK(!after_many({{3, 10 * kCount}}));
  CHECK(!after_many({{0, 10 * kCount}}));  // nested, but too far back to tell
}

TEST(intervals_on_one_lane_never_cross) {
  std::mt19937 random(2);
  for (int round = 0; round < 2'000; ++round) {
    std::vector<Interval> intervals = random_intervals(random, 30);
    sort_by_start(intervals);
    LaneAssigner assigner;
    std::vector<std::vector<Interval>> lanes;
    for (size_t i = 0; i < intervals.size(); ++i) {
      const int64_t parent = static_cast<int64_t>(random() % (i + 2)) - 1;
      const uint32_t lane = assigner.place(intervals[i], static_cast<int64_t>(i), parent);
      CHECK(lane <= lanes.size());
      if (lane >= lanes.size()) lanes.resize(lane + 1);
      lanes[lane].push_back(intervals[i]);
    }
    for (const auto& lane : lanes) CHECK(!any_cross(lane));
  }
}

TEST(a_child_goes_below_its_parent_and_others_to_the_lowest_empty_lane) {
  LaneAssigner lanes;
  CHECK_EQ(lanes.place({0, 100}, 1, LaneAssigner::kNoParent), 0u);
  CHECK_EQ(lanes.place({10, 110}, 2, LaneAssigner::kNoParent), 1u);
  CHECK_EQ(lanes.place({20, 30}, 3, 2), 1u);
  CHECK_EQ(lanes.place({20, 25}, 4, 3), 1u);
  CHECK_EQ(lanes.place({30, 40}, 5, 1), 0u);
  CHECK_EQ(lanes.place({35, 38}, 6, 1), 2u);   // 5 is open below 1
  CHECK_EQ(lanes.place({50, 101}, 7, 1), 2u);  // ends after its parent
  CHECK_EQ(lanes.place({100, 120}, 8, 99), 0u);
  CHECK_EQ(lanes.place({110, 120}, 9, LaneAssigner::kNoParent), 1u);
}

TEST(many_open_lanes_stay_quick) {
  LaneAssigner lanes;
  constexpr int64_t kTasks = 20'000;
  for (int64_t i = 0; i < kTasks; ++i) {
    CHECK_EQ(lanes.place({i, i + kTasks}, i, LaneAssigner::kNoParent), static_cast<uint32_t>(i));
  }
  for (int64_t task = kTasks - 1; task >= 0; --task) {
    const Interval child{kTasks - 1, kTasks};
    CHECK_EQ(lanes.place(child, kTasks + task, task), static_cast<uint32_t>(task));
  }
}
