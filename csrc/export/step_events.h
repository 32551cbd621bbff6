// The requests and steps of a trace, on rows of their own, and the counters that follow the steps.
// Used by the trace writer alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "export/chrome_trace.h"
#include "export/lanes.h"
#include "export/trace_rows.h"
#include "export/trace_text.h"

namespace pertoken::exporting {

class StepEvents {
 public:
  // Unfinished requests and steps are shown up to `last_ns`.
  StepEvents(const ChromeTrace& trace, int64_t last_ns, TraceRows& rows, OutputBuffer& out);

  void write();

 private:
  // Requests and steps are numbered together: requests first.
  bool is_request(uint32_t i) const { return i < requests_.size; }
  Interval interval(uint32_t i) const;
  Interval step_interval(size_t i) const {
    return interval_of(steps_.start_ns[i], steps_.wall_ns[i], last_ns_);
  }
  void write_request(size_t i, const std::string& row);
  void write_step(size_t i, TraceRows::Group& group, uint32_t lane);
  int32_t process(uint32_t i) const {
    return is_request(i) ? requests_.process[i] : steps_.process[i - requests_.size];
  }
  void write_process(TraceRows::Group& group, const uint32_t* begin, const uint32_t* end);
  void write_tokens_counter(TraceRows::Group& group, std::vector<uint32_t> steps);
  void begin_slice(std::string_view name, const std::string& row);
  void text_argument(std::string_view key, int32_t code);
  // Readers show a counter as its name and its series, with a space between.
  void counter(TraceRows::Group& group, std::string_view name, std::string_view series,
               int64_t time_ns, int64_t value);

  const RequestColumns& requests_;
  const StepColumns& steps_;
  const EscapedStrings& strings_;
  int64_t last_ns_;
  TraceRows& rows_;
  OutputBuffer& out_;
  std::vector<TraceRows::Group> groups_;  // one a process
  std::vector<std::string> label_keys_;   // escaped
};

}  // namespace pertoken::exporting
