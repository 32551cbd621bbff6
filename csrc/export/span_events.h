// The spans of a trace: one row a thread, more where they cross. Used by the trace writer alone.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "export/chrome_trace.h"
#include "export/lanes.h"
#include "export/trace_rows.h"
#include "export/trace_text.h"

namespace pertoken::exporting {

class SpanEvents {
 public:
  // Unfinished spans are shown up to `last_ns`.
  SpanEvents(const ChromeTrace& trace, int64_t last_ns, TraceRows& rows, OutputBuffer& out);

  void write();

 private:
  // Spans of one thread, and of one device as that thread used it.
  struct Timeline {
    TraceRows::Group group;
    NestingCheck check;
    bool nested = true;
    uint32_t first_index = 0;  // its part of the index array, when not nested
    uint32_t size = 0;
  };

  Interval interval(size_t i) const {
    return interval_of(spans_.start_ns[i], spans_.dur_ns[i], last_ns_);
  }
  uint32_t timeline_of(size_t i);
  uint32_t add_timeline(int32_t track, int32_t device);
  void assign_timelines();
  void write_in_order();
  void write_sorted(Timeline& timeline, uint32_t* begin, uint32_t* end);
  void write_span(size_t i, const std::string& row);
  void choose_category(int32_t code);

  const SpanColumns& spans_;
  const ChromeTrace& trace_;
  int64_t last_ns_;
  TraceRows& rows_;
  OutputBuffer& out_;

  std::vector<Timeline> timelines_;
  std::unordered_map<uint64_t, uint32_t> timeline_of_key_;
  uint64_t last_key_ = 0;
  uint32_t last_timeline_ = 0;
  std::string root_name_;

  int32_t category_ = -2;  // whose texts the next three are
  bool is_module_ = false;
  std::string head_;
  std::string tail_;
};

}  // namespace pertoken::exporting
