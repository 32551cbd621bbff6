#include "export/value_events.h"

#include <charconv>
#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>

#include "export/trace_text.h"

namespace pertoken::exporting {
namespace {

// The shortest text that reads back as the same number.
constexpr size_t kMaxDoubleChars = 32;

struct Series {
  std::string_view key;
  double value;
};

// An event of a counter, after its name.
void append_values(const TraceProcess& process, int64_t time_ns, std::initializer_list<Series> all,
                   OutputBuffer& out) {
  out.append("\",\"pid\":" + std::to_string(process.pid) + ",\"tid\":0,\"ts\":");
  char* at = out.reserve(kMaxMicrosecondsChars + 16);
  out.commit(put(write_signed_microseconds(at, time_ns), ",\"args\":{"));
  std::string_view before = "\"";
  for (const Series& series : all) {
    if (!std::isfinite(series.value)) continue;
    out.append(before);
    before = ",\"";
    out.append(series.key);
    out.append("\":");
    at = out.reserve(kMaxDoubleChars);
    out.commit(std::to_chars(at, at + kMaxDoubleChars, series.value).ptr);
  }
  out.append("}}");
}

}  // namespace

void write_percentiles(const ChromeTrace& trace, OutputBuffer& out) {
  const PercentileColumns& columns = trace.percentiles;
  std::string root_name;
  append_escaped(root_name, trace.root_name);
  for (size_t i = 0; i < columns.size && out.ok(); ++i) {
    const std::string_view site = (*trace.strings)[columns.site[i]];
    out.append(",\n{\"ph\":\"C\",\"name\":\"values of ");
    out.append(site.empty() ? std::string_view(root_name) : site);
    append_values(trace.processes[static_cast<size_t>(columns.process[i])], columns.time_ns[i],
                  {{"p1", columns.p1[i]}, {"p50", columns.p50[i]}, {"p99", columns.p99[i]}}, out);
  }
}

void write_confidence(const ChromeTrace& trace, OutputBuffer& out) {
  const ConfidenceColumns& columns = trace.confidence;
  for (size_t i = 0; i < columns.size && out.ok(); ++i) {
    out.append(",\n{\"ph\":\"C\",\"name\":\"confidence");
    append_values(trace.processes[static_cast<size_t>(columns.process[i])], columns.time_ns[i],
                  {{"top1_prob", columns.top1_prob[i]},
                   {"margin", columns.margin[i]},
                   {"entropy", columns.entropy[i]},
                   {"logprob", columns.logprob[i]}},
                  out);
  }
}

}  // namespace pertoken::exporting
