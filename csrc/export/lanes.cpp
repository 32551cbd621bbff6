#include "export/lanes.h"

namespace pertoken::exporting {

bool NestingCheck::add_by_end(Interval interval) {
  if (!closed_.empty() && interval.end_ns < closed_.back().end_ns) return false;
  while (!closed_.empty() && closed_.back().start_ns >= interval.start_ns) closed_.pop_back();
  if (!closed_.empty() && closed_.back().end_ns > interval.start_ns) return false;
  if (interval.start_ns < forgotten_end_ns_) return false;
  if (closed_.size() == kMaxRemembered) {
    const auto half = closed_.begin() + kMaxRemembered / 2;
    forgotten_end_ns_ = (half - 1)->end_ns;
    closed_.erase(closed_.begin(), half);
  }
  closed_.push_back(interval);
  return true;
}

bool NestingCheck::add_by_start(Interval interval) {
  while (!open_.empty() && open_.back().end_ns <= interval.start_ns) open_.pop_back();
  if (!open_.empty()) {
    const Interval innermost = open_.back();
    if (interval.start_ns < innermost.start_ns || interval.end_ns > innermost.end_ns) return false;
  }
  open_.push_back(interval);
  return true;
}

bool SortedNestingCheck::add(Interval interval) {
  while (!open_ends_ns_.empty() && open_ends_ns_.back() <= interval.start_ns) {
    open_ends_ns_.pop_back();
  }
  if (!open_ends_ns_.empty() && open_ends_ns_.back() < interval.end_ns) return false;
  open_ends_ns_.push_back(interval.end_ns);
  return true;
}

uint32_t LaneAssigner::place(Interval interval, int64_t id, int64_t parent) {
  free_lanes_until(interval.start_ns);
  if (parent != kNoParent) {
    const auto found = lane_of_open_.find(parent);
    if (found != lane_of_open_.end() && fits_below(found->second, interval, parent)) {
      const uint32_t lane = found->second;
      lanes_[lane].push_back({interval.end_ns, id});
      lane_of_open_[id] = lane;
      return lane;
    }
  }
  uint32_t lane;
  if (empty_.empty()) {
    lane = static_cast<uint32_t>(lanes_.size());
    lanes_.emplace_back();
  } else {
    lane = empty_.top();
    empty_.pop();
  }
  lanes_[lane].push_back({interval.end_ns, id});
  lane_of_open_[id] = lane;
  occupied_.emplace(interval.end_ns, lane);
  return lane;
}

bool LaneAssigner::fits_below(uint32_t lane, Interval interval, int64_t parent) {
  std::vector<Open>& open = lanes_[lane];
  while (!open.empty() && open.back().id != parent && open.back().end_ns <= interval.start_ns) {
    lane_of_open_.erase(open.back().id);
    open.pop_back();
  }
  return !open.empty() && open.back().id == parent && open.back().end_ns >= interval.end_ns;
}

void LaneAssigner::free_lanes_until(int64_t now_ns) {
  while (!occupied_.empty() && occupied_.top().first <= now_ns) {
    const uint32_t lane = occupied_.top().second;
    occupied_.pop();
    for (const Open& interval : lanes_[lane]) lane_of_open_.erase(interval.id);
    lanes_[lane].clear();
    empty_.push(lane);
  }
}

}  // namespace pertoken::exporting
