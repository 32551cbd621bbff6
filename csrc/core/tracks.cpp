#include "core/tracks.h"

#include <algorithm>
#include <limits>
#include <utility>

namespace pertoken {

namespace {

std::string name_of(uint64_t stream) {
  return stream > kFirstBranch ? "graph branch " + std::to_string(stream - kFirstBranch)
                               : "stream " + std::to_string(stream);
}

}  // namespace

int32_t Tracks::add() noexcept {
  constexpr int32_t kLast = std::numeric_limits<int32_t>::max();
  int32_t taken = next_.load(std::memory_order_relaxed);
  while (!next_.compare_exchange_weak(taken, taken == kLast ? 0 : taken + 1,
                                      std::memory_order_relaxed)) {
  }
  return taken;
}

void Tracks::add_thread(int32_t track, int64_t tid, std::string name) {
  known_.push_back({track, tid, std::move(name)});
}

StreamTrack& Tracks::of_stream(const DeviceSpan& span,
                               const std::function<int64_t(int32_t)>& last_seq_of) {
  const auto [entry, is_new] = streams_.try_emplace({span.track, span.device, span.stream});
  if (is_new) {
    const int32_t track = add();
    try {
      known_.push_back(
          {track, static_cast<int64_t>(span.stream), name_of(span.stream), span.device});
    } catch (...) {
      streams_.erase(entry);
      throw;
    }
    const int64_t last_seq = last_seq_of(span.track);
    entry->second = {track, last_seq < 0 ? int64_t{span.seq} : last_seq};
  }
  return entry->second;
}

void Tracks::keep(const std::unordered_set<int32_t>& used) {
  std::erase_if(known_, [&](const TrackInfo& track) { return !used.contains(track.track); });
  std::erase_if(streams_, [&](const auto& entry) { return !used.contains(entry.second.track); });
  forget_at_ = std::max(2 * known_.size(), kFew);
}

}  // namespace pertoken
