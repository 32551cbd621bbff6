// What the user opened round the running code: regions, a step, a request. Scopes live in one
// context variable, so that asyncio tasks and threads each see their own; a scope holds the state
// of one entry, so that one object can be entered many times. Its links only ever change to pass
// over scopes that were closed. All under the GIL.
//
// Nothing but contexts holds an open scope. Where a generator holds its `with` open, any Python
// code may drop the generator, and the scope with it: who uses one while such code runs holds it.
#pragma once

#include <Python.h>

#include <cstdint>

#include "core/recorder.h"

namespace pertoken::bindings {

enum class ScopeKind : uint8_t { kRegion, kStep, kRequest };

class DeviceInterval;
struct KeptLogits;

// How one scope stands in one recorder. `uid` 0: it has no part in it.
struct ScopeEntry {
  uint64_t uid;
  uint32_t parent_seq;       // region: the enclosing span
  uint32_t saved_seq;        // region: what was open on the thread, when `on_thread`
  bool on_thread;            // region: opened inside a synchronous call
  uint32_t step;             // step: its number here
  uint32_t forwards;         // step: that ran in it
  int level;                 // step: its detail, where the recorder samples
  PackedChoices choices;     // step: likewise
  ObservedStep observed;     // step
  uint32_t generation;       // request: its number here
  uint32_t tokens;           // request: what its step regions have committed so far
  union {                    // owned, may be null
    DeviceInterval* device;  // region and step: what times it on the model's device
    KeptLogits* logits;      // request: of its last step, until it is known what they chose
  };
};

struct Scope {
  PyObject_HEAD
  ScopeKind kind;
  PyObject* owner;  // the object whose __enter__ made it
  Scope* outer;     // strong, may be null
  Scope* region;    // nearest enclosing of each kind, itself included; strong but for itself
  Scope* step;
  Scope* request;
  Scope* parent;  // region: the one that spans took for the enclosing span; strong, may be null
  uint64_t thread_uid;  // where it was entered, 0 when that is unknown
  uint64_t start_ticks;
  bool is_open;   // false after its exit, while tasks and generators may still hold on to it
  uint32_t seq;   // region
  uint32_t site;  // region
  StepKind step_kind;
  uint32_t step_rows;
  uint32_t tokens_committed;
  ScopeEntry entries[kMaxRecorders];

  // What `nearest` points to, or the next further out where that has been closed.
  Scope* nearest_open(Scope* Scope::* nearest) noexcept;
};

extern int64_t scopes_entered;  // 0 for as long as the user opened none, which spares the look-up
Scope* innermost_open_scope() noexcept;

// The innermost open scope of the running context, borrowed from it; nullptr when there is none.
inline Scope* current_scope() noexcept {
  return scopes_entered == 0 ? nullptr : innermost_open_scope();
}

// The nearest open one of a kind, borrowed likewise.
inline Scope* current_scope(Scope* Scope::* nearest) noexcept {
  Scope* scope = current_scope();
  return scope == nullptr ? nullptr : scope->nearest_open(nearest);
}

// The span and step that enclose a call which has none open on the calling thread.
struct Enclosing {
  uint32_t seq = 0;
  uint32_t step = kNone32;
};
Enclosing enclosing(const Recorder& recorder) noexcept;

// Adds Region, StepRegion and RequestRegion to the module. Returns false with an exception set.
bool add_scope_types(PyObject* module);

}  // namespace pertoken::bindings
