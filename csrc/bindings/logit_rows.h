// Rows of logits in what a model put out, copies of those that chose tokens, and the records that
// tell what they say. Under the GIL, or where that was given up for a while.
#pragma once

#include <Python.h>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <vector>

#include "bindings/host_tensor.h"
#include "bindings/without_gil.h"
#include "core/logit_stats.h"
#include "core/recorder.h"
#include "core/tensor_view.h"
#include "core/thread_buffer.h"

namespace pertoken::bindings {

// A step whose logits are read, as its forward tells it; -1 unknown.
struct LogitStep {
  uint32_t step = kNone32;
  StepKind kind = StepKind::kOther;
  int64_t rows = -1;
  int64_t positions = -1;  // that are fed, padding included
  int64_t past = -1;       // tokens in the cache
  int64_t keep = 0;        // positions whose logits it is told to keep, the last ones; 0: all
  float weight = 0;

  // The last so many positions each choose a token.
  int64_t places() const noexcept {
    return keep > 1 ? keep : kind == StepKind::kVerify ? positions : 1;
  }
};

// Of `view` (rows, positions, vocabulary).
TensorView logits_at(const TensorView& view, int64_t row, int64_t position) noexcept;

// One row after the other, in the model's own format.
class LogitCopies {
 public:
  // Begins afresh, with room for so many rows of `view`. Throws std::bad_alloc.
  void start(const TensorView& view, int64_t rows);
  void add(const TensorView& one);
  // Of a token chosen from row `at`, of which `stats` are; kUnknown where it is none of them.
  double logprob(size_t at, int64_t token, const LogitStats& stats) const noexcept;

 private:
  std::vector<std::byte> bytes_;
  int64_t vocabulary_ = 0;
  FloatFormat format_ = FloatFormat::kFloat32;
};

// Where nothing is known of the token chosen, `logprob` is LogitStats::kUnknown.
void push_logits(ThreadBuffer& buffer, const LogitStep& of, int64_t row, int64_t place,
                 const LogitStats& stats, double logprob) noexcept;

// Calls read(), which may end in Python; false, counted, where it failed.
template <typename Read>
bool guarded_read(Recorder& recorder, Read&& read) {
  try {
    return read();
  } catch (const std::exception&) {
    recorder.count_fault();
    return false;
  }
}

// Calls read(), without the GIL where it looks at many logits; false, counted, where it failed.
template <typename Read>
bool read_many(Recorder& recorder, int64_t places, int64_t vocabulary, Read&& read) {
  bool is_read = false;
  const auto guarded = [&] {
    is_read = guarded_read(recorder, [&] {
      read();
      return true;
    });
  };
  if (static_cast<uint64_t>(places * vocabulary) < kValuesWithoutGil) {
    guarded();
  } else {
    without_gil(guarded);
  }
  return is_read;
}

}  // namespace pertoken::bindings
