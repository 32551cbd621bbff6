// The tracks of a recording: threads, and for each thread the streams of devices that it has used.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <tuple>

namespace pertoken {

struct TrackInfo {
  int32_t track;
  int64_t tid;  // the system's number of the thread, or the driver's of the stream
  std::string name;
  int32_t device = -1;  // -1: a thread
};

// Of one thread's work on one stream: spans of several threads may overlap, so they share no track.
struct DeviceTrack {
  int32_t track;
  int64_t last_seq;  // the reference for widening the numbers of spans
};

// By the thread's track, the device and the stream. The collector only.
using DeviceTracks = std::map<std::tuple<int32_t, int16_t, uint64_t>, DeviceTrack>;

}  // namespace pertoken
