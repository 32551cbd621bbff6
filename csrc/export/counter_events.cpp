#include "export/counter_events.h"

#include <charconv>
#include <cmath>
#include <string>
#include <string_view>
#include <vector>

#include "export/trace_text.h"

namespace pertoken::exporting {
namespace {

// The shortest text that reads back as the same number.
constexpr size_t kMaxDoubleChars = 32;

std::string escaped(std::string_view text) {
  std::string made;
  append_escaped(made, text);
  return made;
}

}  // namespace

void write_counters(const ChromeTrace& trace, const CounterColumns& columns, OutputBuffer& out) {
  const std::string root_name = escaped(trace.root_name);
  const std::string begin = ",\n{\"ph\":\"C\",\"name\":\"" + escaped(columns.name);
  std::vector<std::string> keys;
  keys.reserve(columns.series.size());
  for (const auto& series : columns.series) keys.push_back(escaped(series.name) + "\":");
  for (size_t i = 0; i < columns.size && out.ok(); ++i) {
    out.append(begin);
    if (columns.site != nullptr) {
      const std::string_view site = (*trace.strings)[columns.site[i]];
      out.append(site.empty() ? std::string_view(root_name) : site);
    }
    const TraceProcess& process = trace.processes[static_cast<size_t>(columns.process[i])];
    out.append("\",\"pid\":" + std::to_string(process.pid) + ",\"tid\":0,\"ts\":");
    char* at = out.reserve(kMaxMicrosecondsChars + 16);
    out.commit(put(write_signed_microseconds(at, columns.time_ns[i]), ",\"args\":{"));
    std::string_view before = "\"";
    for (size_t k = 0; k < keys.size(); ++k) {
      const double value = columns.series[k].value[i];
      if (!std::isfinite(value)) continue;
      out.append(before);
      before = ",\"";
      out.append(keys[k]);
      at = out.reserve(kMaxDoubleChars);
      out.commit(std::to_chars(at, at + kMaxDoubleChars, value).ptr);
    }
    out.append("}}");
  }
}

}  // namespace pertoken::exporting
