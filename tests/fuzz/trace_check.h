// What a reader of a trace counts on, checked without the writer's help: strict JSON in UTF-8, an
// event for each row, and slices that nest on each row of the trace.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace pertoken::fuzz {

struct Expected {
  size_t slices = 0;
  size_t counters = 0;
};

// The first fault, in words; empty when there is none.
std::string trace_fault(std::string_view trace, const Expected& expected);

}  // namespace pertoken::fuzz
