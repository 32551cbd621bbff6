// Small pieces of trace events, written into room that the caller reserved. Used by the writers of
// steps and of spans.
#pragma once

#include <cstdint>
#include <cstring>
#include <limits>

#include "export/json_text.h"
#include "export/lanes.h"

namespace pertoken::exporting {

template <size_t N>
char* put(char* out, const char (&text)[N]) {
  std::memcpy(out, text, N - 1);
  return out + N - 1;
}

// An argument whose absent value is -1: left out then.
template <size_t N>
char* put_known(char* out, const char (&key)[N], int64_t value) {
  if (value == -1) return out;
  return write_integer(put(out, key), value);
}

// What follows a slice's row: its time and the opening of its arguments.
inline constexpr size_t kMaxTimeChars = 2 * kMaxMicrosecondsChars + 20;
inline char* put_time(char* out, Interval interval) {
  out = put(write_signed_microseconds(out, interval.start_ns), ",\"dur\":");
  const auto dur_ns =
      static_cast<uint64_t>(interval.end_ns) - static_cast<uint64_t>(interval.start_ns);
  return put(write_microseconds(out, dur_ns), ",\"args\":{");
}

// An interval that has a negative duration is unfinished: it is shown up to `last_ns`.
inline Interval interval_of(int64_t start_ns, int64_t dur_ns, int64_t last_ns) {
  if (dur_ns < 0) return {start_ns, start_ns > last_ns ? start_ns : last_ns};
  int64_t end_ns;
  if (__builtin_add_overflow(start_ns, dur_ns, &end_ns))
    end_ns = std::numeric_limits<int64_t>::max();
  return {start_ns, end_ns};
}

}  // namespace pertoken::exporting
