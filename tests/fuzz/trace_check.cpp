#include "fuzz/trace_check.h"

#include <algorithm>
#include <map>
#include <optional>
#include <utility>
#include <vector>

#include "fuzz/strict_json.h"

namespace pertoken::fuzz {
namespace {

// 128 bits hold any sum of a time and a duration of 64.
__extension__ using Wide = __int128;

struct Slice {
  Wide start_ns;
  Wide end_ns;
};

const std::string* text_of(const Json& event, const std::string& key, Json::Type type) {
  const Json* const member = event.member(key);
  return member != nullptr && member->type == type ? &member->text : nullptr;
}

// Nanoseconds of a number of microseconds with exactly three decimals.
std::optional<Wide> nanoseconds(const std::string* text) {
  if (text == nullptr || text->size() < 5 || (*text)[text->size() - 4] != '.') return std::nullopt;
  Wide value = 0;
  for (const char c : *text) {
    if (c >= '0' && c <= '9') value = value * 10 + (c - '0');
  }
  return (*text)[0] == '-' ? -value : value;
}

bool nested(std::vector<Slice>& slices) {
  std::sort(slices.begin(), slices.end(), [](const Slice& a, const Slice& b) {
    return a.start_ns != b.start_ns ? a.start_ns < b.start_ns : a.end_ns > b.end_ns;
  });
  std::vector<Wide> open;
  for (const Slice& slice : slices) {
    while (!open.empty() && open.back() <= slice.start_ns) open.pop_back();
    if (!open.empty() && open.back() < slice.end_ns) return false;
    open.push_back(slice.end_ns);
  }
  return true;
}

}  // namespace

std::string trace_fault(std::string_view trace, const Expected& expected) {
  Json root;
  std::string fault;
  if (!parse_json(trace, root, fault)) return fault;
  const Json* const events = root.member("traceEvents");
  if (events == nullptr || events->type != Json::Type::kArray) return "no array of events";

  Expected found;
  std::map<std::pair<std::string, std::string>, std::vector<Slice>> rows;
  for (const Json& event : events->items) {
    const std::string* const phase = text_of(event, "ph", Json::Type::kString);
    const std::string* const name = text_of(event, "name", Json::Type::kString);
    const std::string* const pid = text_of(event, "pid", Json::Type::kNumber);
    const std::string* const tid = text_of(event, "tid", Json::Type::kNumber);
    const auto start_ns = nanoseconds(text_of(event, "ts", Json::Type::kNumber));
    if (!phase || !name || !pid || !tid || !start_ns) return "an event lacks what all have";
    if (*phase == "C") ++found.counters;
    if (*phase != "X") continue;
    ++found.slices;
    const auto dur_ns = nanoseconds(text_of(event, "dur", Json::Type::kNumber));
    if (!dur_ns || *dur_ns < 0) return "a slice without a duration";
    rows[{*pid, *tid}].push_back({*start_ns, *start_ns + *dur_ns});
  }
  if (found.slices != expected.slices || found.counters != expected.counters) {
    return std::to_string(found.slices) + " slices and " + std::to_string(found.counters) +
           " counters, not " + std::to_string(expected.slices) + " and " +
           std::to_string(expected.counters);
  }
  for (auto& [row, slices] : rows) {
    if (!nested(slices)) return "slices cross on row " + row.first + ", " + row.second;
  }
  return "";
}

}  // namespace pertoken::fuzz
