// The logits of a step that the user or an engine declares. What they say is told at once, without
// the log-probability of the tokens chosen, which are not seen here. Where somebody may name them
// later, copies of the rows that chose are kept until then, and the same is told once more with it:
// an engine tells them with its commits; in a loop by hand, the next forward of the request is fed
// them. No ids are kept. Under the GIL, on the model's thread.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <vector>

#include "bindings/gpu_logit_reader.h"
#include "bindings/logit_rows.h"
#include "bindings/owned.h"
#include "core/observed_step.h"
#include "core/recorder.h"

namespace pertoken {

class LogitReader;

namespace bindings {

struct Scope;

// What chose the tokens of one step, in one recorder, until it is known which they were.
struct KeptLogits {
  struct Row {
    uint32_t row;
    uint32_t place;
    LogitStats stats;
  };

  LogitStep of;
  uint64_t recorder_uid = 0;
  std::vector<Row> rows;  // empty where nothing is awaited
  LogitCopies logits;     // of each of `rows`
  // In the place of the copies and of what they say, where the logits lie on a GPU; else null.
  std::unique_ptr<GpuLogitStep> gpu;
};

// The tokens that were chosen, by row and then by place; those of rows beyond are unknown.
using ChosenTokens = std::vector<std::vector<int64_t>>;
void tell_chosen(Recorder& recorder, ThreadBuffer& buffer, const KeptLogits& kept,
                 const ChosenTokens& chosen);

struct DeclaredLogits {
  LogitStep of;
  ObservedStep rows;
  std::vector<ValidRun> runs;
  std::vector<int64_t> positions_kept;  // where a tensor says whose logits are kept
  uint64_t begin_ticks = 0;             // what it took to get ready for them
  // Which of them keeps copies; none where both are null. References, since either may be told or
  // closed while the forward runs.
  Owned region{nullptr};   // until commit()
  Owned request{nullptr};  // until the next forward
};

// What a forward is given, or null.
struct LogitArguments {
  PyObject* ids;
  PyObject* mask;
  PyObject* keep;
};

// Before the forward: null where its logits are not to be read.
std::unique_ptr<DeclaredLogits> begin_declared_logits(LogitReader& reader, Recorder& recorder,
                                                      ThreadBuffer& buffer, Scope* region,
                                                      const LogitStep& step,
                                                      const LogitArguments& arguments);
// After it.
void end_declared_logits(LogitReader& reader, const DeclaredLogits& declared, Recorder& recorder,
                         ThreadBuffer& buffer, PyObject* output);

}  // namespace bindings
}  // namespace pertoken
