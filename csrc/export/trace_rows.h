// The rows of a Chrome trace: which process and thread ids a slice goes under, and the metadata
// events that name them. Used by the trace writer alone.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "export/chrome_trace.h"
#include "export/sink.h"

namespace pertoken::exporting {

class TraceRows {
 public:
  // The first process is announced at once, so that every later event follows another.
  TraceRows(OutputBuffer& out, const std::vector<TraceProcess>& processes);

  // A set of rows that belong together: one, and more when intervals on it cross.
  struct Group {
    int64_t pid;
    int64_t tid;       // wanted for the first row; 0 when any will do
    std::string name;  // escaped
    int64_t position;  // among all groups, from the top
    // For each row, what stands between a slice's name and its time: `","pid":1,"tid":2,"ts":`.
    std::vector<std::string> rows;
  };

  // The text of a group's row, which is announced when it is new. Rows come in order, from 0.
  const std::string& row(Group& group, uint32_t index) {
    if (index >= group.rows.size()) add_row(group, index);
    return group.rows[index];
  }

 private:
  // Linux gives no thread an id of 2^22 or more.
  static constexpr int64_t kFirstMadeUpTid = int64_t{1} << 22;
  static constexpr int64_t kMaxTid = INT32_MAX;  // some readers keep 32 bits

  void add_row(Group& group, uint32_t index);
  void announce_process(int64_t pid);
  int64_t take_tid(int64_t pid, int64_t wanted);
  void metadata(std::string_view what, int64_t pid, int64_t tid, std::string_view args);

  OutputBuffer& out_;
  const std::vector<TraceProcess>& processes_;
  bool any_event_ = false;
  std::set<int64_t> pids_;
  std::set<std::pair<int64_t, int64_t>> taken_;
  int64_t next_tid_ = kFirstMadeUpTid;
};

}  // namespace pertoken::exporting
