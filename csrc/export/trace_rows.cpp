#include "export/trace_rows.h"

#include <algorithm>

#include "export/json_text.h"

namespace pertoken::exporting {
namespace {

constexpr int64_t kNoTid = 0;
constexpr int64_t kRowsBetweenGroups = 1 << 16;

}  // namespace

TraceRows::TraceRows(OutputBuffer& out, const std::vector<TraceProcess>& processes)
    : out_(out), processes_(processes) {
  announce_process(processes.front().pid);
}

void TraceRows::add_row(Group& group, uint32_t index) {
  announce_process(group.pid);
  const int64_t tid = take_tid(group.pid, index == 0 ? group.tid : kNoTid);
  const std::string suffix = index == 0 ? "" : " (" + std::to_string(index + 1) + ")";
  metadata("thread_name", group.pid, tid, "\"name\":\"" + group.name + suffix + "\"");
  const int64_t position = group.position * kRowsBetweenGroups + index;
  metadata("thread_sort_index", group.pid, tid, "\"sort_index\":" + std::to_string(position));
  group.rows.push_back("\",\"pid\":" + std::to_string(group.pid) +
                       ",\"tid\":" + std::to_string(tid) + ",\"ts\":");
}

void TraceRows::announce_process(int64_t pid) {
  if (!pids_.insert(pid).second) return;
  const auto found =
      std::find_if(processes_.begin(), processes_.end(),
                   [pid](const TraceProcess& process) { return process.pid == pid; });
  const TraceProcess& process = found != processes_.end() ? *found : processes_.front();
  std::string name;
  append_escaped(name, process.name);
  metadata("process_name", pid, kNoTid, "\"name\":\"" + name + "\"");
  metadata("process_labels", pid, kNoTid, "\"labels\":\"CPU\"");
  // One process alone keeps its id; several stand in their own order.
  const int64_t position = processes_.size() > 1 ? found - processes_.begin() : pid;
  metadata("process_sort_index", pid, kNoTid, "\"sort_index\":" + std::to_string(position));
}

int64_t TraceRows::take_tid(int64_t pid, int64_t wanted) {
  if (wanted > 0 && wanted <= kMaxTid && taken_.insert({pid, wanted}).second) return wanted;
  while (!taken_.insert({pid, next_tid_}).second) ++next_tid_;
  return next_tid_++;
}

void TraceRows::metadata(std::string_view what, int64_t pid, int64_t tid, std::string_view args) {
  out_.append(any_event_ ? ",\n" : "\n");
  any_event_ = true;
  out_.append("{\"ph\":\"M\",\"name\":\"");
  out_.append(what);
  out_.append("\",\"pid\":" + std::to_string(pid) + ",\"tid\":" + std::to_string(tid) +
              ",\"ts\":0.000,\"args\":{");
  out_.append(args);
  out_.append("}}");
}

}  // namespace pertoken::exporting
