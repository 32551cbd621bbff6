#include "export/span_events.h"

#include <algorithm>
#include <utility>

namespace pertoken::exporting {

SpanEvents::SpanEvents(const ChromeTrace& trace, int64_t last_ns, TraceRows& rows,
                       OutputBuffer& out)
    : spans_(trace.spans), trace_(trace), last_ns_(last_ns), rows_(rows), out_(out) {
  append_escaped(root_name_, trace.root_name);
}

void SpanEvents::write() {
  assign_timelines();
  write_in_order();

  uint32_t unsorted = 0;
  for (Timeline& timeline : timelines_) {
    if (timeline.nested) continue;
    timeline.first_index = unsorted;
    unsorted += timeline.size;
  }
  if (unsorted == 0) return;
  std::vector<uint32_t> indices(unsorted);
  for (Timeline& timeline : timelines_) timeline.size = 0;
  for (size_t i = 0; i < spans_.size; ++i) {
    Timeline& timeline = timelines_[timeline_of(i)];
    if (timeline.nested) continue;
    indices[timeline.first_index + timeline.size++] = static_cast<uint32_t>(i);
  }
  for (Timeline& timeline : timelines_) {
    if (timeline.nested || !out_.ok()) continue;
    uint32_t* const begin = indices.data() + timeline.first_index;
    write_sorted(timeline, begin, begin + timeline.size);
  }
}

uint32_t SpanEvents::timeline_of(size_t i) {
  const int32_t track = spans_.track[i];
  const int32_t device = spans_.device[i];
  const uint64_t key = uint64_t{static_cast<uint32_t>(track)} << 32 | static_cast<uint32_t>(device);
  if (key == last_key_ && !timelines_.empty()) return last_timeline_;
  const auto found = timeline_of_key_.find(key);
  last_timeline_ = found != timeline_of_key_.end() ? found->second : add_timeline(track, device);
  timeline_of_key_.emplace(key, last_timeline_);
  last_key_ = key;
  return last_timeline_;
}

uint32_t SpanEvents::add_timeline(int32_t track, int32_t device) {
  Timeline timeline;
  const TrackColumns& tracks = trace_.tracks;
  const int32_t* const found = std::find(tracks.track, tracks.track + tracks.size, track);
  const auto row = static_cast<size_t>(found - tracks.track);
  timeline.group.pid = row < tracks.size ? tracks.pid[row] : trace_.processes.front().pid;
  timeline.group.tid = row < tracks.size ? tracks.tid[row] : 0;
  if (row < tracks.size) timeline.group.name = (*trace_.strings)[tracks.name[row]];
  if (timeline.group.name.empty()) timeline.group.name = "track " + std::to_string(track);
  if (device >= 0) {
    timeline.group.name += " on device " + std::to_string(device);
    timeline.group.tid = 0;
  }
  timeline.group.position = static_cast<int64_t>(timelines_.size()) + 1;
  timelines_.push_back(std::move(timeline));
  return static_cast<uint32_t>(timelines_.size() - 1);
}

void SpanEvents::assign_timelines() {
  for (size_t i = 0; i < spans_.size; ++i) {
    Timeline& timeline = timelines_[timeline_of(i)];
    timeline.check.add(interval(i));
    ++timeline.size;
  }
  for (Timeline& timeline : timelines_) {
    timeline.nested = timeline.check.nested();
    timeline.check = NestingCheck();
  }
}

void SpanEvents::write_in_order() {
  for (size_t i = 0; i < spans_.size && out_.ok(); ++i) {
    Timeline& timeline = timelines_[timeline_of(i)];
    if (timeline.nested) write_span(i, rows_.row(timeline.group, 0));
  }
}

void SpanEvents::write_sorted(Timeline& timeline, uint32_t* begin, uint32_t* end) {
  std::sort(begin, end, [this](uint32_t a, uint32_t b) {
    if (spans_.start_ns[a] != spans_.start_ns[b]) return spans_.start_ns[a] < spans_.start_ns[b];
    const int64_t end_a_ns = interval(a).end_ns;
    const int64_t end_b_ns = interval(b).end_ns;
    if (end_a_ns != end_b_ns) return end_a_ns > end_b_ns;
    // Ids are given on entry: of two equal intervals the outer one has the smaller.
    return std::pair(spans_.span[a], a) < std::pair(spans_.span[b], b);
  });
  SortedNestingCheck check;
  const bool nested = std::all_of(begin, end, [&](uint32_t i) { return check.add(interval(i)); });
  LaneAssigner lanes;
  for (const uint32_t* i = begin; i != end && out_.ok(); ++i) {
    const uint32_t lane =
        nested ? 0 : lanes.place(interval(*i), spans_.span[*i], spans_.parent[*i]);
    write_span(*i, rows_.row(timeline.group, lane));
  }
}

void SpanEvents::write_span(size_t i, const std::string& row) {
  if (spans_.category[i] != category_) choose_category(spans_.category[i]);
  const std::string_view name = (*trace_.strings)[spans_.site[i]];
  out_.append(head_);
  out_.append(name.empty() && is_module_ ? std::string_view(root_name_) : name);
  out_.append(row);
  char* at = out_.reserve(kMaxTimeChars + 3 * kMaxIntegerChars + 80);
  at = put_time(at, interval(i));
  at = write_integer(put(at, "\"span\":"), spans_.span[i]);
  at = put_known(at, ",\"parent\":", spans_.parent[i]);
  at = put_known(at, ",\"step\":", spans_.step[i]);
  if (spans_.dur_ns[i] < 0) at = put(at, ",\"unfinished\":true");
  out_.commit(at);
  out_.append(tail_);
}

void SpanEvents::choose_category(int32_t code) {
  const std::string_view category = (*trace_.strings)[code];
  category_ = code;
  is_module_ = category == "module";
  const char* const shown = is_module_ ? "python_function" : "user_annotation";
  head_ = std::string(",\n{\"ph\":\"X\",\"cat\":\"") + shown + "\",\"name\":\"";
  tail_ = ",\"category\":\"" + std::string(category) + "\"}}";
}

}  // namespace pertoken::exporting
