// The call slots of a recording's wrappers, which steps without detail find empty, so that modules
// are called there as if nobody recorded. A wrapper that is called in such a step steps aside: its
// slot gets what an empty one holds. From then on the root's wrapper puts it back for each step
// that needs it, and takes it out for each that does not. What is never called so, such as a module
// that the compiler has inlined, is never touched.
//
// Wrappers are out only where nobody could miss them: while one step alone is open, no graph is
// captured, and nobody changes a model; and only those on top of the module's own call, with
// neither another recording's wrapper nor anybody's value above or below. Everything under the GIL;
// what drops references may unwind, and so is not noexcept (see owned.h).
#pragma once

#include <Python.h>

#include <array>
#include <cstdint>
#include <vector>

#include "bindings/span_call.h"
#include "core/recorder.h"

namespace pertoken {

class CallSlots {
 public:
  // `name`: of the attribute. Throws std::bad_alloc.
  explicit CallSlots(PyObject* name);
  ~CallSlots();
  CallSlots(const CallSlots&) = delete;
  CallSlots& operator=(const CallSlots&) = delete;

  // The wrapper may step aside from now on. Throws std::bad_alloc.
  void add(bindings::SpanCall& call);

  // Hot, before a forward whose wrappers will see this open_detail.
  void begin_step(const Recorder& recorder, ThreadBuffer& buffer) {
    ++open_steps_;
    if (arranged_for_ != buffer.open_detail) arrange(recorder, buffer);
  }
  void end_step() noexcept { --open_steps_; }

  // Hot, in a call in a step without the call's detail: where it may, the wrapper leaves its slot.
  void step_aside(bindings::SpanCall& call, ThreadBuffer& buffer);

  // All that are known, in or out. How many moved.
  uint32_t put_back();
  // Where all are in: none steps aside again before it is called in a step without detail.
  void forget();

  // While held, the wrappers of all models are in their slots. Calls nest.
  static void hold();
  static void release() noexcept;

 private:
  enum Sort : uint8_t { kOfLayers, kOfAll, kObserved, kSorts };
  // Wrappers of one sort that have stepped aside before.
  struct Known {
    std::vector<bindings::SpanCall*> calls;  // each holds a reference
    size_t added = 0;                        // for which there is room
    uint32_t out = 0;                        // of them
  };

  void arrange(const Recorder& recorder, ThreadBuffer& buffer);
  static Sort sort_of(const bindings::SpanCall& call) noexcept;
  static std::vector<CallSlots*>& every();
  bool may_empty(const Recorder& recorder) const noexcept;
  void look_for_compiler();
  bool is_compiler_in_use();
  bool exchange(const bindings::SpanCall& call, PyObject* expected, PyObject* value) const;
  bool leave(bindings::SpanCall& call, const ThreadBuffer& buffer);
  static void fetch(const Known& known);
  uint32_t put_back(Known& known);
  uint32_t take_out(Known& known);
  static void drop(Known& known, size_t at);

  PyObject* const name_;
  // The compiler is in use: its guards remember the dicts that slots stand in.
  bool is_closed_ = false;
  uint32_t open_steps_ = 0;
  // The open_detail by which all that are known are in or out; nothing moves for one like it.
  uint32_t arranged_for_ = kNone32;
  std::array<Known, kSorts> known_;
};

}  // namespace pertoken

namespace pertoken::bindings {

// The root's wrapper, round a step's forward. Not by a destructor: when the interpreter ends
// meanwhile, the stack is unwound and the recorder may be gone.
inline void begin_slots(Recorder& recorder, ThreadBuffer& buffer) {
  buffer.unrecorded = {};
  if (CallSlots* slots = recorder.call_slots()) slots->begin_step(recorder, buffer);
}
inline void end_slots(Recorder& recorder) noexcept {
  if (CallSlots* slots = recorder.call_slots()) slots->end_step();
}

}  // namespace pertoken::bindings
