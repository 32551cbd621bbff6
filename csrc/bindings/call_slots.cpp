#include "bindings/call_slots.h"

#include "bindings/device_calls.h"
#include "bindings/owned.h"
#include "bindings/weak_method.h"
#include "core/step_detail.h"

namespace pertoken {

namespace {

uint32_t holds = 0;  // process-wide, under the GIL

// The module whose own call the wrapper stands for, by a new reference; null where it is gone.
PyObject* module_of(const bindings::InnerCallable& inner) {
  if (inner.instance != nullptr) return Py_NewRef(inner.instance);
  if (inner.callable == nullptr || !Py_IS_TYPE(inner.callable, bindings::weak_method_type)) {
    return nullptr;
  }
  return bindings::referent(reinterpret_cast<bindings::WeakMethod*>(inner.callable)->ref);
}

struct CompilerNames {
  PyObject* module = PyUnicode_InternFromString("torch._dynamo.utils");
  PyObject* counters = PyUnicode_InternFromString("counters");
  PyObject* frames = PyUnicode_InternFromString("frames");
  PyObject* ok = PyUnicode_InternFromString("ok");
};

// Whether torch's compiler has compiled anything in this process, by its own count. Nothing is
// imported for that, and no entry made. Each wrapper that leaves its slot for the first time asks.
bool has_compiled() {
  static const auto& names = *new CompilerNames;
  const auto entry = [](PyObject* dict, PyObject* key) {
    return dict != nullptr && PyDict_Check(dict) ? PyDict_GetItemWithError(dict, key) : nullptr;
  };
  PyObject* dynamo = entry(PyImport_GetModuleDict(), names.module);
  if (dynamo == nullptr) return false;
  const bindings::Owned counters(PyObject_GetAttr(dynamo, names.counters));
  PyObject* compiled = entry(entry(counters.get(), names.frames), names.ok);
  PyErr_Clear();
  return compiled != nullptr && PyObject_IsTrue(compiled) == 1;
}

}  // namespace

CallSlots::CallSlots(PyObject* name) : name_(name) {
  every().push_back(this);
  Py_INCREF(name_);
}

// The last holder of a recorder may let go of it in any thread, and when Python is no more.
CallSlots::~CallSlots() {
  if (Py_IsInitialized() == 0) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  std::erase(every(), this);
  forget();
  Py_DECREF(name_);
  PyGILState_Release(state);
}

std::vector<CallSlots*>& CallSlots::every() {
  static auto& every = *new std::vector<CallSlots*>;
  return every;
}

CallSlots::Sort CallSlots::sort_of(const bindings::SpanCall& call) noexcept {
  if (call.observer != nullptr) return kObserved;
  return call.left_out == left_out(kDetailAll) ? kOfAll : kOfLayers;
}

void CallSlots::add(bindings::SpanCall& call) {
  Known& known = known_[sort_of(call)];
  known.calls.reserve(++known.added);
  look_for_compiler();
  call.may_step_aside = true;
}

// Where wrappers are moved; that it is in use is remembered.
void CallSlots::look_for_compiler() { is_closed_ = is_closed_ || has_compiled(); }

bool CallSlots::is_compiler_in_use() {
  look_for_compiler();
  return is_closed_;
}

bool CallSlots::may_empty(const Recorder& recorder) const noexcept {
  return open_steps_ == 1 && !is_closed_ && holds == 0 && !bindings::has_open_captures(recorder);
}

// Puts `value` into the wrapper's slot where that holds `expected`. What somebody else has written
// there stays.
bool CallSlots::exchange(const bindings::SpanCall& call, PyObject* expected,
                         PyObject* value) const {
  const bindings::Owned module(module_of(call.inner));
  if (!module) return false;
  const bindings::Owned attributes(PyObject_GenericGetDict(module.get(), nullptr));
  const bool is_done = attributes && PyDict_GetItemWithError(attributes.get(), name_) == expected &&
                       PyDict_SetItem(attributes.get(), name_, value) == 0;
  if (!is_done) PyErr_Clear();
  return is_done;
}

void CallSlots::step_aside(bindings::SpanCall& call, ThreadBuffer& buffer) {
  const uint64_t start_ticks = now_ticks();
  if (!leave(call, buffer)) return;
  ++buffer.unrecorded.moved;
  buffer.unrecorded.move_ticks += now_ticks() - start_ticks;
}

bool CallSlots::leave(bindings::SpanCall& call, const ThreadBuffer& buffer) {
  if (!call.may_step_aside || call.is_aside || !may_empty(*call.recorder)) return false;
  if (call.observer != nullptr && (buffer.open_detail & kDetailActivations) != 0) return false;
  Known& known = known_[sort_of(call)];
  auto* wrapper = reinterpret_cast<PyObject*>(&call);
  if (!call.is_known && (is_compiler_in_use() || known.calls.size() == known.calls.capacity())) {
    return false;
  }
  // Who calls the wrapper holds it, too.
  if (!exchange(call, wrapper, Py_None)) return false;
  if (!call.is_known) {
    Py_INCREF(wrapper);
    known.calls.push_back(&call);
    call.is_known = true;
  }
  call.is_aside = true;
  ++known.out;
  // Another thread's step may have been the last for which they were moved.
  if (buffer.open_detail != arranged_for_) arranged_for_ = kNone32;
  return true;
}

// The wrapper, its module, the module's dict and its keys: each is found through the one before,
// and beside a model's work all are outside the caches. So they are asked for generation by
// generation.
void CallSlots::fetch(const Known& known) {
  for (const bindings::SpanCall* call : known.calls) {
    __builtin_prefetch(call);
    __builtin_prefetch(&call->is_aside);
  }
  const auto each_dict = [&](auto&& use) {
    for (const bindings::SpanCall* call : known.calls) {
      if (call->inner.instance != nullptr) use(_PyObject_GetDictPtr(call->inner.instance));
    }
  };
  for (const bindings::SpanCall* call : known.calls) {
    // What finds the dict stands before the object.
    const auto* module = reinterpret_cast<const char*>(call->inner.instance);
    __builtin_prefetch(module - 2 * sizeof(PyObject));
    __builtin_prefetch(module);
  }
  each_dict([](PyObject** dict) {
    if (dict != nullptr) __builtin_prefetch(*dict, 1);
  });
  each_dict([](PyObject** dict) {
    if (dict == nullptr || *dict == nullptr) return;
    const auto* keys =
        reinterpret_cast<const char*>(reinterpret_cast<PyDictObject*>(*dict)->ma_keys);
    __builtin_prefetch(keys);
    __builtin_prefetch(keys + 64);
  });
}

uint32_t CallSlots::put_back(Known& known) {
  if (known.out == 0) return 0;
  fetch(known);
  known.out = 0;
  uint32_t moved = 0;
  // By index: a module that is let go of may drag along what runs code.
  for (size_t i = 0; i < known.calls.size();) {
    bindings::SpanCall& call = *known.calls[i++];
    if (!call.is_aside) continue;
    call.is_aside = false;
    moved += exchange(call, Py_None, reinterpret_cast<PyObject*>(&call)) ? 1 : 0;
  }
  return moved;
}

uint32_t CallSlots::take_out(Known& known) {
  fetch(known);
  uint32_t moved = 0;
  for (size_t i = 0; i < known.calls.size();) {
    bindings::SpanCall& call = *known.calls[i];
    if (!call.is_aside) {
      call.is_aside =
          call.may_step_aside && exchange(call, reinterpret_cast<PyObject*>(&call), Py_None);
      moved += call.is_aside ? 1 : 0;
    }
    if (call.is_aside) {
      ++i;
      continue;
    }
    drop(known, i);  // somebody else has the slot by now, or counts on what stands in it
  }
  known.out += moved;
  return moved;
}

void CallSlots::drop(Known& known, size_t at) {
  bindings::SpanCall* call = known.calls[at];
  known.calls[at] = known.calls.back();
  known.calls.pop_back();
  call->is_known = false;
  Py_DECREF(call);
}

uint32_t CallSlots::put_back() {
  arranged_for_ = kNone32;
  uint32_t moved = 0;
  for (Known& known : known_) moved += put_back(known);
  return moved;
}

void CallSlots::forget() {
  for (Known& known : known_) {
    while (!known.calls.empty()) drop(known, known.calls.size() - 1);
  }
}

void CallSlots::arrange(const Recorder& recorder, ThreadBuffer& buffer) {
  const uint32_t detail = buffer.open_detail;
  const bool has_layers = (detail & left_out(kDetailLayers)) == 0;
  std::array<bool, kSorts> is_needed{};
  is_needed[kOfLayers] = has_layers;
  is_needed[kOfAll] = (detail & left_out(kDetailAll)) == 0;
  is_needed[kObserved] = has_layers || (detail & kDetailActivations) != 0;
  uint32_t& moved = buffer.unrecorded.moved;
  const uint64_t start_ticks = now_ticks();
  bool all_moved = true;
  for (size_t sort = 0; sort < kSorts; ++sort) {
    Known& known = known_[sort];
    if (is_needed[sort]) {
      moved += put_back(known);
    } else if (known.out < known.calls.size()) {
      const bool may_move = may_empty(recorder);
      all_moved &= may_move;
      if (may_move) moved += take_out(known);
    }
  }
  if (moved != 0 && is_compiler_in_use()) {
    moved += put_back();
    forget();
  }
  arranged_for_ = all_moved ? detail : kNone32;
  if (moved != 0) buffer.unrecorded.move_ticks = now_ticks() - start_ticks;
}

void CallSlots::hold() {
  ++holds;
  for (size_t i = 0; i < every().size();) every()[i++]->put_back();
}

void CallSlots::release() noexcept { --holds; }

}  // namespace pertoken
