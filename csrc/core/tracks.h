// The tracks of a recording: threads, and for each thread the streams of devices that it has used.
// Used by one thread at a time, but for what says otherwise.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <unordered_set>
#include <vector>

#include "core/device_source.h"

namespace pertoken {

struct TrackInfo {
  int32_t track;
  int64_t tid;  // the system's number of the thread, or the driver's of the stream
  std::string name;
  int32_t device = -1;  // -1: a thread
};

// Of one thread's work on one stream: spans of several threads may overlap, so they share no track.
struct StreamTrack {
  int32_t track;
  int64_t last_seq;  // the reference for widening the numbers of spans
};

class Tracks {
 public:
  // A new number; any thread.
  int32_t add() noexcept;
  // All of these throw std::bad_alloc, and leave the others as they were.
  void add_thread(int32_t track, int64_t tid, std::string name);
  // That of the stream of a span, made when it is new, with the last number of its thread's track.
  StreamTrack& of_stream(const DeviceSpan& span,
                         const std::function<int64_t(int32_t)>& last_seq_of);

  // Whether there are twice as many as had to be kept the last time.
  bool are_many() const { return known_.size() >= forget_at_; }
  // Forgets all others.
  void keep(const std::unordered_set<int32_t>& used);

  // As they came: threads and streams get their numbers in another order than they are told in.
  const std::vector<TrackInfo>& known() const { return known_; }

 private:
  static constexpr size_t kFew = 1024;

  std::vector<TrackInfo> known_;
  size_t forget_at_ = kFew;
  // By the thread's track, the device and the stream.
  std::map<std::tuple<int32_t, int16_t, uint64_t>, StreamTrack> streams_;
  std::atomic<int32_t> next_ = 0;  // relaxed: they are to differ, no more
};

}  // namespace pertoken
