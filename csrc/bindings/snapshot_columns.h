// Turns a recorder's snapshot into numpy columns, times already in nanoseconds since the origin.
// Cold; takes the GIL only to allocate the arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/recorder.h"

namespace pertoken::bindings {

// The span's public id: stable, never negative, and unique among all spans that are held. Numbers
// are used again after eight million threads, and after 2^40 spans of one thread.
constexpr int64_t span_id(int32_t track, int64_t seq) noexcept {
  constexpr int kSeqBits = 40;
  constexpr int64_t kTracks = int64_t{1} << (63 - kSeqBits);
  return (track % kTracks) << kSeqBits | (seq & ((int64_t{1} << kSeqBits) - 1));
}

// {"spans": {...}, "steps": {...}, "row_valid": {...}, "rows": {...}, "row_commits": {...},
// "token_logits": {...}, "activations": see observation_columns.h, "tracks": [...],
//  "sites": [...], "marks_ns": array, "losses": {...}, "clock": {...}, "first_step": int}.
// `marks` are further ticks to convert, such as those of requests.
pybind11::dict snapshot_columns(const RecorderSnapshot& snapshot, uint64_t origin_ticks,
                                const pybind11::array_t<uint64_t>& marks);

}  // namespace pertoken::bindings
