// The rows of a step as an engine, or the user, tells them: read once from Python, then pushed to
// each recorder that the step belongs to. Once a step, outside the model's own calls; under the
// GIL.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "bindings/request_numbers.h"
#include "core/recorder.h"

namespace pertoken::bindings {

class StepRows {
 public:
  StepRows() = default;
  StepRows(const StepRows&) = delete;
  StepRows& operator=(const StepRows&) = delete;
  ~StepRows();

  // Takes a sequence of tuples (request, phase, query_len, context_len, committed); `requests` is
  // a dict from what a row names to its RowRequest, or nullptr. False with KeyError set for an
  // unknown request, ValueError for anything else. Throws std::bad_alloc.
  bool read(PyObject* rows, PyObject* requests);
  // The phase that all rows are in, else kMixed; kOther of none.
  StepKind kind() const noexcept;
  uint32_t size() const noexcept { return static_cast<uint32_t>(rows_.size()); }
  // Tokens fed for all rows together; kNone32 when it is unknown for one.
  uint32_t query_len() const noexcept;

  // Where the rows stand in a packed batch of so many positions, of which the last may be padding.
  // False when they do not fit, or the length of one is unknown.
  bool packed_runs(int64_t positions, std::vector<ValidRun>& runs) const noexcept;

  // Rows without a request of their own are those of `generation`.
  void push(Recorder& recorder, ThreadBuffer& buffer, uint32_t step, uint32_t generation) const;
  // `committed` a row, kNone32 unknown; `end_ticks` of the step. Empty: what the rows said.
  void push_commits(Recorder& recorder, ThreadBuffer& buffer, uint32_t step, uint64_t end_ticks,
                    const std::vector<uint32_t>& committed) const;

 private:
  struct Row {
    RowRequest* request;  // strong, may be null
    StepKind phase;
    uint32_t query_len;
    uint32_t context_len;
    uint32_t committed;
  };
  bool read_row(PyObject* row, PyObject* requests, uint64_t batch);

  std::vector<Row> rows_;
};

// A number of tokens, -1 or None being kNone32. False with ValueError set for anything else.
bool read_count(PyObject* value, uint32_t& count);

}  // namespace pertoken::bindings
