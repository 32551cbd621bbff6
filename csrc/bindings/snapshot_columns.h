// Turns a recorder's snapshot into numpy columns, times already in nanoseconds since the origin.
// Cold; takes the GIL only to allocate the arrays.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "core/recorder.h"

namespace pertoken::bindings {

// The span's public id: stable, unique in the recording.
constexpr int64_t span_id(int32_t track, int64_t seq) noexcept {
  return int64_t{track} << 40 | seq;
}

// {"spans": {...}, "steps": {...}, "row_valid": {...}, "rows": {...}, "row_commits": {...},
// "tracks": [...], "sites": [...],
//  "marks_ns": array, "losses": {...}, "clock": {...}, "first_step": int}.
// `marks` are further ticks to convert, such as those of requests.
pybind11::dict snapshot_columns(const RecorderSnapshot& snapshot, uint64_t origin_ticks,
                                const pybind11::array_t<uint64_t>& marks);

}  // namespace pertoken::bindings
