#include "export/percentile_events.h"

#include <charconv>
#include <cmath>
#include <string>

#include "export/trace_text.h"

namespace pertoken::exporting {
namespace {

// The shortest text that reads back as the same number.
constexpr size_t kMaxDoubleChars = 32;

void append_series(OutputBuffer& out, std::string_view key, double value, bool& is_first) {
  if (!std::isfinite(value)) return;
  out.append(is_first ? "\"" : ",\"");
  is_first = false;
  out.append(key);
  out.append("\":");
  char* const at = out.reserve(kMaxDoubleChars);
  out.commit(std::to_chars(at, at + kMaxDoubleChars, value).ptr);
}

}  // namespace

void write_percentiles(const ChromeTrace& trace, OutputBuffer& out) {
  const PercentileColumns& columns = trace.percentiles;
  std::string root_name;
  append_escaped(root_name, trace.root_name);
  for (size_t i = 0; i < columns.size && out.ok(); ++i) {
    const auto process = static_cast<size_t>(columns.process[i]);
    const std::string_view site = (*trace.strings)[columns.site[i]];
    out.append(",\n{\"ph\":\"C\",\"name\":\"values of ");
    out.append(site.empty() ? std::string_view(root_name) : site);
    out.append("\",\"pid\":" + std::to_string(trace.processes[process].pid) + ",\"tid\":0,\"ts\":");
    char* const at = out.reserve(kMaxMicrosecondsChars + 16);
    out.commit(put(write_signed_microseconds(at, columns.time_ns[i]), ",\"args\":{"));
    bool is_first = true;
    append_series(out, "p1", columns.p1[i], is_first);
    append_series(out, "p50", columns.p50[i], is_first);
    append_series(out, "p99", columns.p99[i], is_first);
    out.append("}}");
  }
}

}  // namespace pertoken::exporting
