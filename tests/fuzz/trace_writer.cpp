// Fuzzes the trace writer: makes columns of an input's bytes, writes the trace and checks all that
// a reader counts on. Built with -fsanitize=fuzzer where clang has it; with any compiler,
// replay.cpp gives it a main() that runs files. The input is described at FuzzedProfile.
#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <string>
#include <string_view>
#include <vector>

#include "export/chrome_trace.h"
#include "fuzz/trace_check.h"

namespace {

using namespace pertoken::exporting;

// Takes the input apart from its front; what is missing at its end reads as zeros.
class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  uint8_t byte() {
    if (size_ == 0) return 0;
    --size_;
    return *data_++;
  }

  // A byte chooses the kind: small, of interest, or eight bytes as they come.
  int64_t integer() {
    constexpr int64_t kOfInterest[] = {
        -1,        INT64_MIN, INT64_MAX,     INT64_MIN + 1, INT64_MAX - 1,
        INT32_MAX, INT32_MIN, 4194304,       999,           1000,
        -1000,     -2,        INT64_MAX / 2, INT64_MIN / 2, 1000000000,
        4294967296};
    const uint8_t kind = byte();
    if (kind < 160) return kind;
    if (kind < 224) return kOfInterest[kind % std::size(kOfInterest)];
    uint64_t value = 0;
    for (int i = 0; i < 8; ++i) value = value << 8 | byte();
    return static_cast<int64_t>(value);
  }

  std::string text() {
    std::string result(byte() % 16, '\0');
    for (char& c : result) c = static_cast<char>(byte());
    return result;
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

// What the input says, in this order: strings, labels, then the tables row by row. A count is one
// byte; codes are brought into the range that the binding has checked.
class FuzzedProfile {
 public:
  FuzzedProfile(const uint8_t* data, size_t size) : in_(data, size) {
    for (const std::string_view known : {"decode", "module", "prefill", "generate"}) add(known);
    for (size_t left = in_.byte() % 8; left > 0; --left) add(in_.text());
    trace_.strings = &strings_;
    trace_.header_json = in_.byte() % 2 == 0 ? "" : "\"schemaVersion\": 1";
    read_processes(1 + in_.byte() % 3);
    root_ = in_.text();
    trace_.root_name = root_;
    read_requests(rows());
    read_steps(rows());
    read_spans(rows());
    read_tracks(rows());
    for (size_t left = in_.byte() % 4; left > 0; --left) read_counters(rows());
  }

  const ChromeTrace& trace() const { return trace_; }

  pertoken::fuzz::Expected expected() const {
    pertoken::fuzz::Expected expected;
    expected.slices = trace_.requests.size + trace_.steps.size + trace_.spans.size;
    for (size_t i = 0; i < trace_.steps.size; ++i) {
      const bool finished = trace_.steps.wall_ns[i] >= 0;
      if (finished && strings_[trace_.steps.kind[i]] == "decode") ++expected.slices;
      if (finished && trace_.steps.tokens_committed[i] != -1) ++expected.counters;
      if (trace_.steps.context_len[i] != -1) ++expected.counters;
    }
    for (const CounterColumns& counters : trace_.counters) expected.counters += counters.size;
    return expected;
  }

 private:
  void add(std::string_view text) { strings_.add(text); }
  size_t rows() { return in_.byte() % 64; }

  const int64_t* integers(size_t size) {
    std::vector<int64_t>& column = wide_.emplace_back(size);
    for (int64_t& value : column) value = in_.integer();
    return column.data();
  }
  const int32_t* small_integers(size_t size) {
    std::vector<int32_t>& column = narrow_.emplace_back(size);
    for (int32_t& value : column) value = static_cast<int32_t>(in_.integer());
    return column.data();
  }
  const int32_t* codes(size_t size) {
    std::vector<int32_t>& column = narrow_.emplace_back(size);
    const int count = static_cast<int>(strings_.size()) + 1;
    for (int32_t& code : column) code = in_.byte() % count - 1;
    return column.data();
  }

  const int32_t* processes(size_t size) {
    std::vector<int32_t>& column = narrow_.emplace_back(size);
    const int count = static_cast<int>(trace_.processes.size());
    for (int32_t& process : column) process = in_.byte() % count;
    return column.data();
  }

  void read_processes(size_t count) {
    process_names_.resize(count);
    for (std::string& name : process_names_) {
      const int64_t pid = in_.integer();
      name = in_.text();
      const bool is_shown =
          std::any_of(trace_.processes.begin(), trace_.processes.end(),
                      [&](const TraceProcess& other) { return other.pid == pid; });
      if (!is_shown) trace_.processes.push_back({pid, name});
    }
  }

  void read_requests(size_t size) {
    RequestColumns& requests = trace_.requests;
    requests.size = size;
    requests.request = integers(size);
    requests.start_ns = integers(size);
    requests.end_ns = integers(size);
    requests.ttft_ns = integers(size);
    requests.rows = integers(size);
    requests.tokens_in = integers(size);
    requests.tokens_out = integers(size);
    requests.id = codes(size);
    requests.model_version = codes(size);
    requests.error = codes(size);
    requests.process = processes(size);
    label_names_.resize(in_.byte() % 4);
    for (std::string& name : label_names_) {
      // Columns have distinct names, so labels do: their number makes them so here.
      name = in_.text() + std::to_string(&name - label_names_.data());
      requests.labels.push_back({name, codes(size)});
    }
  }

  void read_steps(size_t size) {
    StepColumns& steps = trace_.steps;
    steps.size = size;
    steps.step = integers(size);
    steps.request = integers(size);
    steps.start_ns = integers(size);
    steps.wall_ns = integers(size);
    steps.gpu_ns = integers(size);
    steps.rows = integers(size);
    steps.tokens_in = integers(size);
    steps.tokens_committed = integers(size);
    steps.context_len = integers(size);
    steps.kind = codes(size);
    steps.error = codes(size);
    steps.process = processes(size);
  }

  void read_spans(size_t size) {
    SpanColumns& spans = trace_.spans;
    spans.size = size;
    spans.span = integers(size);
    spans.parent = integers(size);
    spans.step = integers(size);
    spans.start_ns = integers(size);
    spans.dur_ns = integers(size);
    spans.site = codes(size);
    spans.category = codes(size);
    spans.track = small_integers(size);
    spans.device = small_integers(size);
  }

  void read_tracks(size_t size) {
    TrackColumns& tracks = trace_.tracks;
    tracks.size = size;
    tracks.track = small_integers(size);
    tracks.pid = integers(size);
    tracks.tid = integers(size);
    tracks.name = codes(size);
  }

  const double* numbers(size_t size) {
    std::vector<double>& column = real_.emplace_back(size);
    for (double& value : column) value = std::bit_cast<double>(in_.integer());
    return column.data();
  }

  std::string_view counter_name() {
    const size_t number = counter_names_.size();  // so that no two are equal
    return counter_names_.emplace_back(in_.text() + std::to_string(number));
  }

  void read_counters(size_t size) {
    CounterColumns& counters = trace_.counters.emplace_back();
    counters.size = size;
    counters.name = counter_name();
    counters.time_ns = integers(size);
    counters.process = processes(size);
    if (in_.byte() % 2 == 0) counters.site = codes(size);
    for (size_t left = in_.byte() % 5; left > 0; --left) {
      const std::string_view name = counter_name();
      counters.series.push_back({name, numbers(size)});
    }
  }

  Input in_;
  EscapedStrings strings_;
  std::vector<std::vector<int64_t>> wide_;
  std::vector<std::vector<int32_t>> narrow_;
  std::vector<std::vector<double>> real_;
  std::vector<std::string> label_names_;
  std::vector<std::string> process_names_;
  std::deque<std::string> counter_names_;
  std::string root_;
  ChromeTrace trace_;
};

class StringSink final : public Sink {
 public:
  bool write(const char* data, size_t size) override {
    text.append(data, size);
    return true;
  }
  std::string text;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const FuzzedProfile profile(data, size);
  StringSink sink;
  if (!write_chrome_trace(profile.trace(), sink)) std::abort();
  const std::string fault = pertoken::fuzz::trace_fault(sink.text, profile.expected());
  if (fault.empty()) return 0;
  std::fprintf(stderr, "%s\n%s\n", fault.c_str(), sink.text.c_str());
  std::abort();
}
