// A step that the user or an engine declares: what runs inside belongs to it. It begins in a
// recorder when that first hears of it: at the first forward of its model, else at its end.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "bindings/declared_logits.h"
#include "bindings/scope.h"
#include "core/recorder.h"

namespace pertoken::bindings {

// What a forward says of the step it runs in; kNone32 where it does not.
struct StepLengths {
  uint32_t rows = kNone32;
  uint32_t query_len = kNone32;
  uint32_t past = kNone32;
};

// The number of the step region round the running code in this recorder, begun if it has not yet
// been. The lengths are those of the forward that asks first; rows that the user gave come before.
// Python may be asked for the numbers of these: the caller holds the scope, and, as all that may
// end in Python, this is not noexcept (see owned.h).
uint32_t begin_step_region(Scope* step, Recorder& recorder, ThreadBuffer& buffer,
                           const StepLengths& lengths, uint32_t generation);

// The same for the replay of a graph that holds the model, which tells no lengths; kNone32 where
// the step is another model's.
uint32_t begin_replayed_step(Scope* step, Recorder& recorder, ThreadBuffer& buffer);

// Where the rows that the user told stand in the tensors of a forward, once `observed` has the
// forward's own lengths: one each, or one after the other in a packed batch, which fills `runs`.
// Unknown where neither fits.
void place_told_rows(const Scope* step, ObservedStep& observed, std::vector<ValidRun>& runs);

bool has_told_rows(const Scope* step) noexcept;
// Whether commit() tells what it committed, and may say which tokens; from which logits they were
// chosen is kept until then. Throws std::bad_alloc.
bool awaits_commit(const Scope* step) noexcept;
void keep_until_commit(const Scope* step, KeptLogits&& logits);

// Called when the scope has just been closed.
void end_step_region(Scope* step, bool failed);

// Adds StepRegion to the module. Returns false with an exception set.
bool add_step_region_type(PyObject* module);

}  // namespace pertoken::bindings
