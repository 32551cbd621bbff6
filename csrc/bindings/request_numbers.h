// How a recorder numbers requests: by asking Python, once for each request, and keeping the answer.
// Two kinds come here: what pertoken.request() encloses, and the requests that an engine's rows
// name. All under the GIL.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/scope.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// The sequence of one engine's request in one run of a recorder, from its first row there.
struct RowSequence {
  PyObject_HEAD
  uint64_t run_uid;             // of the recorder
  uint32_t generation;          // its number in the recording
  uint32_t tokens;              // committed so far
  bool tokens_unknown;          // some step did not say how many
  uint64_t first_commit_ticks;  // the end of the step that committed first, 0 none yet
};

// A request as an engine names it in its rows; Python derives from it.
struct RowRequest {
  PyObject_HEAD
  RowSequence* sequences[kMaxRecorders];  // strong, by slot; may be null or of an earlier run
  uint64_t last_batch;                    // the last list of rows that it was found in
};

// The generation that stands for a request without generate() in this recorder; kNone32 when it
// has none. Python is asked once, and may close scopes meanwhile; `request` itself is held.
uint32_t request_generation(Scope* request, Recorder& recorder);

// The sequence that stands for an engine's request, borrowed from it; nullptr when it has none.
RowSequence* row_sequence(RowRequest* request, Recorder& recorder);

// The same without asking: nullptr where this run of the recorder has not met the request.
RowSequence* known_row_sequence(const RowRequest* request, const Recorder& recorder) noexcept;

bool is_row_request(PyObject* object) noexcept;

// Whether the recorder records the model of this identity.
bool records_model(const Recorder& recorder, uint64_t model) noexcept;

// Adds RowRequest, RowSequence and set_request_hooks. Returns false with an exception set.
bool add_request_number_types(PyObject* module);

}  // namespace pertoken::bindings
