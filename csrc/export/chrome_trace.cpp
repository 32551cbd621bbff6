#include "export/chrome_trace.h"

#include <algorithm>
#include <string>

#include "export/counter_events.h"
#include "export/span_events.h"
#include "export/step_events.h"
#include "export/trace_rows.h"
#include "export/trace_text.h"

namespace pertoken::exporting {
namespace {

// The last moment that any table knows of: an unfinished interval adds its start.
int64_t last_time_ns(const ChromeTrace& trace) {
  const RequestColumns& requests = trace.requests;
  const StepColumns& steps = trace.steps;
  const SpanColumns& spans = trace.spans;
  int64_t last_ns = std::numeric_limits<int64_t>::min();
  for (size_t i = 0; i < requests.size; ++i) {
    last_ns = std::max({last_ns, requests.start_ns[i], requests.end_ns[i]});
  }
  for (size_t i = 0; i < steps.size; ++i) {
    last_ns = std::max(last_ns, interval_of(steps.start_ns[i], steps.wall_ns[i], last_ns).end_ns);
  }
  for (size_t i = 0; i < spans.size; ++i) {
    last_ns = std::max(last_ns, interval_of(spans.start_ns[i], spans.dur_ns[i], last_ns).end_ns);
  }
  return last_ns;
}

}  // namespace

bool write_chrome_trace(const ChromeTrace& trace, Sink& sink) {
  OutputBuffer out(sink);
  out.append("{");
  out.append(trace.header_json);
  out.append(trace.header_json.empty() ? "\"traceEvents\": [" : ",\n\"traceEvents\": [");
  TraceRows rows(out, trace.processes);
  const int64_t last_ns = last_time_ns(trace);
  StepEvents(trace, last_ns, rows, out).write();
  SpanEvents(trace, last_ns, rows, out).write();
  for (const CounterColumns& counters : trace.counters) write_counters(trace, counters, out);
  out.append("\n]}\n");
  return out.flush();
}

}  // namespace pertoken::exporting
