// Writes a profile as Chrome trace event JSON, in the conventions of PyTorch's own traces. Called
// by the binding, on the thread that exports; knows columns and a sink, no Python and no recorder.
//
// Every slice is a complete event (ph X). Requests and steps of a process share rows of their own,
// spans have a row a thread; further rows, each with a thread id beyond any of the system's, take
// what would cross. Output is streamed: memory is the escaped strings, one buffer, 4 bytes a
// request and step, and 4 bytes a span of a thread whose spans cross or come in no known order,
// none otherwise.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "export/json_text.h"
#include "export/sink.h"

namespace pertoken::exporting {

// Columns of the tables in python/pertoken/schema.py, each `size` long. Codes lie within `strings`;
// requests and steps together, and spans, number fewer than 2^32.
struct RequestColumns {
  struct Label {
    std::string_view name;  // UTF-8, not escaped
    const int32_t* value;
  };
  size_t size = 0;
  const int64_t* request = nullptr;
  const int32_t* id = nullptr;
  const int32_t* model_version = nullptr;
  const int64_t* start_ns = nullptr;
  const int64_t* end_ns = nullptr;
  const int64_t* ttft_ns = nullptr;
  const int64_t* rows = nullptr;
  const int64_t* tokens_in = nullptr;
  const int64_t* tokens_out = nullptr;
  const int32_t* error = nullptr;
  const int32_t* process = nullptr;
  std::vector<Label> labels;
};

struct StepColumns {
  size_t size = 0;
  const int64_t* step = nullptr;
  const int64_t* request = nullptr;
  const int32_t* kind = nullptr;
  const int64_t* start_ns = nullptr;
  const int64_t* wall_ns = nullptr;
  const int64_t* gpu_ns = nullptr;
  const int64_t* rows = nullptr;
  const int64_t* tokens_in = nullptr;
  const int64_t* tokens_committed = nullptr;
  const int64_t* context_len = nullptr;
  const int32_t* error = nullptr;
  const int32_t* process = nullptr;
};

struct SpanColumns {
  size_t size = 0;
  const int64_t* span = nullptr;
  const int64_t* parent = nullptr;
  const int64_t* step = nullptr;
  const int32_t* site = nullptr;
  const int32_t* category = nullptr;
  const int32_t* track = nullptr;
  const int64_t* start_ns = nullptr;
  const int64_t* dur_ns = nullptr;
  const int32_t* device = nullptr;
};

struct TrackColumns {
  size_t size = 0;
  const int32_t* track = nullptr;
  const int64_t* pid = nullptr;
  const int64_t* tid = nullptr;
  const int32_t* name = nullptr;
};

// Samples of counters, computed by the caller: one counter a process, or, with sites, one for each
// site of it.
struct CounterColumns {
  struct Series {
    std::string_view name;  // UTF-8, not escaped, as is the next
    const double* value;    // what is not finite is left out
  };
  std::string_view name;  // with sites, what stands before theirs
  size_t size = 0;
  const int64_t* time_ns = nullptr;
  const int32_t* process = nullptr;
  const int32_t* site = nullptr;  // null: no sites
  std::vector<Series> series;
};

// A process as it is shown: ids of processes on several hosts may be equal, those shown are not.
struct TraceProcess {
  int64_t pid;
  std::string_view name;  // UTF-8, not escaped
};

struct ChromeTrace {
  RequestColumns requests;
  StepColumns steps;
  SpanColumns spans;
  TrackColumns tracks;
  std::vector<CounterColumns> counters;
  const EscapedStrings* strings = nullptr;
  std::string_view header_json;  // members of the outermost object: `"schemaVersion": 1, ...`
  // At least one. The processes of requests and steps are numbers of these; tracks whose pid is
  // none of theirs are shown as another process with the name of the first.
  std::vector<TraceProcess> processes;
  std::string_view root_name;  // shown for a module without a name: the model itself
};

// False when the sink refused a write; what it got before is then not a whole trace.
bool write_chrome_trace(const ChromeTrace& trace, Sink& sink);

}  // namespace pertoken::exporting
