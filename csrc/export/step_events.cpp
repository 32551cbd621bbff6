#include "export/step_events.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace pertoken::exporting {
namespace {

constexpr size_t kMaxStepNumbersChars = 8 * (kMaxIntegerChars + 24);

}  // namespace

StepEvents::StepEvents(const ChromeTrace& trace, int64_t last_ns, TraceRows& rows,
                       OutputBuffer& out)
    : requests_(trace.requests),
      steps_(trace.steps),
      strings_(*trace.strings),
      last_ns_(last_ns),
      rows_(rows),
      out_(out) {
  for (const TraceProcess& process : trace.processes) {
    groups_.push_back({process.pid, 0, "requests and steps", 0, {}});
  }
  for (const RequestColumns::Label& label : requests_.labels) {
    std::string key = ",\"";
    append_escaped(key, label.name);
    label_keys_.push_back(key + "\":\"");
  }
}

void StepEvents::write() {
  std::vector<uint32_t> order(requests_.size + steps_.size);
  std::iota(order.begin(), order.end(), uint32_t{0});
  std::sort(order.begin(), order.end(), [this](uint32_t a, uint32_t b) {
    if (process(a) != process(b)) return process(a) < process(b);
    const Interval x = interval(a);
    const Interval y = interval(b);
    if (x.start_ns != y.start_ns) return x.start_ns < y.start_ns;
    return x.end_ns != y.end_ns ? x.end_ns > y.end_ns : a < b;
  });
  const uint32_t* const end = order.data() + order.size();
  for (const uint32_t* begin = order.data(); begin != end;) {
    const int32_t number = process(*begin);
    const uint32_t* const last =
        std::find_if(begin, end, [this, number](uint32_t i) { return process(i) != number; });
    write_process(groups_[static_cast<size_t>(number)], begin, last);
    begin = last;
  }
}

void StepEvents::write_process(TraceRows::Group& group, const uint32_t* begin,
                               const uint32_t* end) {
  LaneAssigner lanes;
  std::vector<uint32_t> counted;
  for (const uint32_t* i = begin; i != end; ++i) {
    if (!out_.ok()) return;
    if (is_request(*i)) {
      const uint32_t lane =
          lanes.place(interval(*i), requests_.request[*i], LaneAssigner::kNoParent);
      write_request(*i, rows_.row(group, lane));
    } else {
      const size_t step = *i - requests_.size;
      // Nothing goes below a step: any id will do that is no request's.
      const int64_t id = LaneAssigner::kNoParent - 1 - static_cast<int64_t>(step);
      write_step(step, group, lanes.place(interval(*i), id, steps_.request[step]));
      if (steps_.wall_ns[step] >= 0 && steps_.tokens_committed[step] != -1) {
        counted.push_back(static_cast<uint32_t>(step));
      }
    }
  }
  write_tokens_counter(group, std::move(counted));
}

Interval StepEvents::interval(uint32_t i) const {
  if (!is_request(i)) return step_interval(i - requests_.size);
  const int64_t start_ns = requests_.start_ns[i];
  const int64_t end_ns = requests_.end_ns[i];
  if (end_ns == -1) return interval_of(start_ns, -1, last_ns_);
  return {start_ns, std::max(start_ns, end_ns)};
}

void StepEvents::write_request(size_t i, const std::string& row) {
  out_.append(",\n{\"ph\":\"X\",\"cat\":\"user_annotation\",\"name\":\"request ");
  const std::string_view id = strings_[requests_.id[i]];
  out_.append(id.empty() ? std::string_view(std::to_string(requests_.request[i])) : id);
  out_.append(row);
  char* at = out_.reserve(kMaxTimeChars + kMaxStepNumbersChars);
  at = put_time(at, interval(static_cast<uint32_t>(i)));
  at = write_integer(put(at, "\"request\":"), requests_.request[i]);
  at = put_known(at, ",\"ttft_ns\":", requests_.ttft_ns[i]);
  at = put_known(at, ",\"rows\":", requests_.rows[i]);
  at = put_known(at, ",\"tokens_in\":", requests_.tokens_in[i]);
  at = put_known(at, ",\"tokens_out\":", requests_.tokens_out[i]);
  if (requests_.end_ns[i] == -1) at = put(at, ",\"unfinished\":true");
  out_.commit(at);
  text_argument(",\"id\":\"", requests_.id[i]);
  text_argument(",\"model_version\":\"", requests_.model_version[i]);
  text_argument(",\"error\":\"", requests_.error[i]);
  for (size_t label = 0; label < label_keys_.size(); ++label) {
    text_argument(label_keys_[label], requests_.labels[label].value[i]);
  }
  out_.append("}}");
}

void StepEvents::write_step(size_t i, TraceRows::Group& group, uint32_t lane) {
  const std::string& row = rows_.row(group, lane);
  const Interval interval = step_interval(i);
  const bool finished = steps_.wall_ns[i] >= 0;
  const std::string_view kind = strings_[steps_.kind[i]];
  begin_slice(kind, row);
  char* at = out_.reserve(kMaxTimeChars + kMaxStepNumbersChars);
  at = put_time(at, interval);
  at = write_integer(put(at, "\"step\":"), steps_.step[i]);
  at = put_known(at, ",\"request\":", steps_.request[i]);
  at = put_known(at, ",\"gpu_ns\":", steps_.gpu_ns[i]);
  at = put_known(at, ",\"rows\":", steps_.rows[i]);
  at = put_known(at, ",\"tokens_in\":", steps_.tokens_in[i]);
  at = put_known(at, ",\"tokens_committed\":", steps_.tokens_committed[i]);
  at = put_known(at, ",\"context_len\":", steps_.context_len[i]);
  if (!finished) at = put(at, ",\"unfinished\":true");
  out_.commit(at);
  text_argument(",\"kind\":\"", steps_.kind[i]);
  text_argument(",\"error\":\"", steps_.error[i]);
  out_.append("}}");

  if (kind == "decode" && finished) {
    begin_slice("ProfilerStep#", std::to_string(steps_.step[i]) + row);
    at = put(put_time(out_.reserve(kMaxTimeChars + 2), interval), "}}");
    out_.commit(at);
  }
  if (steps_.context_len[i] != -1) {
    counter(group, "context_len", "tokens", interval.start_ns, steps_.context_len[i]);
  }
}

void StepEvents::write_tokens_counter(TraceRows::Group& group, std::vector<uint32_t> steps) {
  std::sort(steps.begin(), steps.end(), [this](uint32_t a, uint32_t b) {
    return std::pair(step_interval(a).end_ns, a) < std::pair(step_interval(b).end_ns, b);
  });
  uint64_t tokens = 0;
  for (const uint32_t i : steps) {
    if (!out_.ok()) return;
    tokens += static_cast<uint64_t>(steps_.tokens_committed[i]);
    counter(group, "tokens", "committed", step_interval(i).end_ns, static_cast<int64_t>(tokens));
  }
}

void StepEvents::begin_slice(std::string_view name, const std::string& row) {
  out_.append(",\n{\"ph\":\"X\",\"cat\":\"user_annotation\",\"name\":\"");
  out_.append(name);
  out_.append(row);
}

void StepEvents::text_argument(std::string_view key, int32_t code) {
  const std::string_view text = strings_[code];
  if (text.empty()) return;
  out_.append(key);
  out_.append(text);
  out_.append("\"");
}

void StepEvents::counter(TraceRows::Group& group, std::string_view name, std::string_view series,
                         int64_t time_ns, int64_t value) {
  out_.append(",\n{\"ph\":\"C\",\"name\":\"");
  out_.append(name);
  out_.append(rows_.row(group, 0));
  char* at = out_.reserve(kMaxMicrosecondsChars + 16);
  out_.commit(put(write_signed_microseconds(at, time_ns), ",\"args\":{\""));
  out_.append(series);
  at = out_.reserve(kMaxIntegerChars + 8);
  out_.commit(put(write_integer(put(at, "\":"), value), "}}"));
}

}  // namespace pertoken::exporting
