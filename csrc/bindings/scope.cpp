#include "bindings/scope.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "bindings/span_call.h"
#include "bindings/step_inputs.h"
#include "core/string_table.h"

namespace pertoken::bindings {

namespace {

PyObject* scope_var = nullptr;  // the context variable
PyTypeObject* scope_type = nullptr;
int64_t scopes_entered = 0;  // 0 for as long as the user opened none, which spares the look-up

void scope_dealloc(PyObject* self) {
  auto* scope = reinterpret_cast<Scope*>(self);
  Py_XDECREF(scope->owner);
  Py_XDECREF(reinterpret_cast<PyObject*>(scope->outer));
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot scope_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(scope_dealloc)}, {0, nullptr}};
PyType_Spec scope_spec = {"pertoken._native.Scope", sizeof(Scope), 0, Py_TPFLAGS_DEFAULT,
                          scope_slots};

// What __enter__ is called on: a region, a step or a request as the user wrote it.
struct Opener {
  PyObject_HEAD
  ScopeKind kind;
  uint32_t site;
  StepKind step_kind;
  uint32_t step_rows;
  uint32_t tokens_committed;
};

// Of the running context, closed ones included.
Scope* innermost_scope() noexcept {
  if (scopes_entered == 0) return nullptr;
  PyObject* value = nullptr;
  if (PyContextVar_Get(scope_var, nullptr, &value) < 0) {
    PyErr_Clear();
    return nullptr;
  }
  if (value == nullptr) return nullptr;
  Py_DECREF(value);  // the context keeps it alive
  return value == Py_None ? nullptr : reinterpret_cast<Scope*>(value);
}

Scope* open_scope(Scope* scope) noexcept {
  while (scope != nullptr && !scope->is_open) scope = scope->outer;
  return scope;
}

// Makes the scope and sets it in the running context. nullptr with an exception set on failure.
Scope* enter_scope(Opener* opener) {
  auto* scope = reinterpret_cast<Scope*>(scope_type->tp_alloc(scope_type, 0));
  if (scope == nullptr) return nullptr;
  Scope* outer = current_scope();
  scope->kind = opener->kind;
  scope->owner = Py_NewRef(reinterpret_cast<PyObject*>(opener));
  scope->outer = reinterpret_cast<Scope*>(Py_XNewRef(reinterpret_cast<PyObject*>(outer)));
  if (outer != nullptr) {
    scope->region = outer->region;
    scope->step = outer->step;
    scope->request = outer->request;
  }
  switch (opener->kind) {
    case ScopeKind::kRegion:
      scope->region = scope;
      break;
    case ScopeKind::kStep:
      scope->step = scope;
      break;
    case ScopeKind::kRequest:
      scope->request = scope;
      break;
  }
  scope->is_open = true;
  scope->site = opener->site;
  scope->step_kind = opener->step_kind;
  scope->step_rows = opener->step_rows;
  scope->tokens_committed = opener->tokens_committed;
  const ThreadState* thread = ensure_thread_state();
  scope->thread_uid = thread == nullptr ? 0 : thread->uid;
  PyObject* token = PyContextVar_Set(scope_var, reinterpret_cast<PyObject*>(scope));
  if (token == nullptr) {
    Py_DECREF(scope);
    return nullptr;
  }
  Py_DECREF(token);
  Py_DECREF(scope);  // the context holds it now
  ++scopes_entered;
  return scope;
}

// The scope that this object's innermost entry made, closed. Those that are still open stay in the
// running context: generators close theirs in any order. A new reference; nullptr when there is
// none, which happens when __exit__ runs in another context.
Scope* leave_scope(PyObject* owner) {
  Scope* scope = innermost_scope();
  while (scope != nullptr && (scope->owner != owner || !scope->is_open)) scope = scope->outer;
  if (scope == nullptr) return nullptr;
  Py_INCREF(scope);
  scope->is_open = false;
  auto* innermost = reinterpret_cast<PyObject*>(current_scope());
  PyObject* token = PyContextVar_Set(scope_var, innermost == nullptr ? Py_None : innermost);
  if (token == nullptr) PyErr_Clear();
  Py_XDECREF(token);
  return scope;
}

// What is left of a region's parent when the region ends: generators may have closed it before.
uint32_t open_parent(const Scope* scope, int slot) {
  uint32_t parent_seq = scope->entries[slot].parent_seq;
  for (const Scope* outer = scope->outer; outer != nullptr; outer = outer->outer) {
    const bool is_parent = outer->kind == ScopeKind::kRegion && outer->seq == parent_seq &&
                           outer->thread_uid == scope->thread_uid;
    if (is_parent && !outer->is_open) parent_seq = outer->entries[slot].parent_seq;
  }
  return parent_seq;
}

// By slot of a recorder, while it is installed: () -> number of the generation that stands for the
// running request.
struct RequestHook {
  uint64_t uid = 0;
  PyObject* hook = nullptr;
};
RequestHook request_hooks[kMaxRecorders];

PyObject* set_request_hook(PyObject*, PyObject* const* args, Py_ssize_t count) {
  const Recorder* recorder = count == 2 ? recorder_of(args[0]) : nullptr;
  if (recorder == nullptr) {
    if (!PyErr_Occurred()) PyErr_SetString(PyExc_TypeError, "give a recorder and its hook");
    return nullptr;
  }
  RequestHook& held = request_hooks[recorder->slot()];
  // A recorder that stopped may have left its slot to another.
  if (args[1] == Py_None && held.uid != recorder->uid()) Py_RETURN_NONE;
  PyObject* before = held.hook;
  held = {recorder->uid(), args[1] == Py_None ? nullptr : Py_NewRef(args[1])};
  Py_XDECREF(before);
  Py_RETURN_NONE;
}

template <typename F>
void for_each_active(F&& visit) {
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    Recorder* recorder = Recorder::at(slot);
    if (recorder != nullptr && recorder->active()) visit(slot, *recorder);
  }
}

void begin_region(Scope* scope) {
  if (scope->thread_uid == 0) return;
  scope->seq = tls_thread_state->next_seq();
  for_each_active([&](int slot, Recorder& recorder) {
    ThreadBuffer* buffer = recorder.buffer();
    if (buffer == nullptr) return;
    ScopeEntry& entry = scope->entries[slot];
    entry.uid = recorder.uid();
    entry.step = buffer->open_step;
    entry.on_thread = buffer->open_seq != 0;
    if (entry.on_thread) {
      entry.parent_seq = entry.saved_seq = buffer->open_seq;
      buffer->open_seq = scope->seq;
    } else if (Scope* outer = open_scope(scope->outer)) {
      const Scope* region = outer->nearest_open(&Scope::region);
      if (region != nullptr && region->thread_uid == scope->thread_uid &&
          region->entries[slot].uid == entry.uid) {
        entry.parent_seq = region->seq;
      }
      const Scope* step = outer->nearest_open(&Scope::step);
      if (step != nullptr && step->entries[slot].uid == entry.uid) {
        entry.step = step->entries[slot].step;
      }
    }
  });
  scope->start_ticks = now_ticks();
}

void end_region(Scope* scope) {
  const uint64_t end_ticks = now_ticks();
  // A region that ends on another thread than it began on has no track to lie on.
  if (tls_thread_state == nullptr || scope->thread_uid != tls_thread_state->uid) return;
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    Recorder* recorder = Recorder::at(slot);
    const ScopeEntry& entry = scope->entries[slot];
    if (recorder == nullptr || entry.uid != recorder->uid()) continue;
    ThreadBuffer* buffer = recorder->buffer();
    if (buffer == nullptr) continue;
    // Not so where a generator is closed after the call that began it, or inside another.
    const bool is_innermost = buffer->open_seq == scope->seq;
    if (entry.on_thread && is_innermost) buffer->open_seq = entry.saved_seq;
    if (!recorder->active()) continue;
    const uint32_t parent_seq = entry.on_thread && !is_innermost ? 0 : open_parent(scope, slot);
    buffer->push({scope->start_ticks, end_ticks, make_tag(RecordType::kSpan, scope->site),
                  scope->seq, parent_seq, entry.step});
  }
}

void end_step(Scope* scope, bool failed) {
  const uint64_t end_ticks = now_ticks();
  bool begun = false;
  for_each_active([&](int slot, Recorder& recorder) {
    begun = begun || scope->entries[slot].uid == recorder.uid();
  });
  for_each_active([&](int slot, Recorder& recorder) {
    ThreadBuffer* buffer = recorder.buffer();
    if (buffer == nullptr) return;
    Scope* request = scope->nearest_open(&Scope::request);
    // No recorded model ran inside: the region itself is all there is to this step.
    if (!begun) {
      const uint32_t generation =
          request == nullptr ? kNone32 : request_generation(request, recorder);
      begin_step_region(scope, recorder, *buffer, {}, generation);
    }
    const ScopeEntry& entry = scope->entries[slot];
    if (entry.uid != recorder.uid()) return;
    const uint32_t flags = (failed ? kStepFailed : 0) | (entry.forwards > 1 ? kStepSeveral : 0);
    buffer->push({end_ticks, 0, make_tag(RecordType::kStepEnd, flags), 0, 0, entry.step});
    if (scope->tokens_committed == kNone32) return;
    uint64_t before = 0;
    if (request != nullptr) {
      before = request->entries[slot].tokens;
      request->entries[slot].tokens += scope->tokens_committed;
    }
    buffer->push({before, scope->tokens_committed, make_tag(RecordType::kCommit, kCommitTotal), 0,
                  0, entry.step});
  });
}

// PERTOKEN=0 when the module was loaded: no scope has anybody to be seen by.
bool is_switched_off() {
  const char* text = std::getenv("PERTOKEN");
  return text != nullptr && std::string_view(text) == "0";
}
const bool switched_off = is_switched_off();

PyObject* opener_enter(PyObject* self, PyObject*) {
  if (switched_off) return Py_NewRef(self);
  Scope* scope = enter_scope(reinterpret_cast<Opener*>(self));
  if (scope == nullptr) return nullptr;
  if (scope->kind == ScopeKind::kRegion) {
    begin_region(scope);
  } else {
    scope->start_ticks = now_ticks();
  }
  return Py_NewRef(self);
}

PyObject* opener_exit(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (switched_off) Py_RETURN_NONE;
  const bool failed = count > 0 && args[0] != Py_None;
  if (Scope* scope = leave_scope(self)) {
    if (scope->kind == ScopeKind::kRegion) end_region(scope);
    if (scope->kind == ScopeKind::kStep) end_step(scope, failed);
    Py_DECREF(scope);
  }
  Py_RETURN_NONE;
}

int region_init(PyObject* self, PyObject* args, PyObject* kwargs) {
  static const char* names[] = {"name", nullptr};
  PyObject* text = nullptr;
  if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U:span", const_cast<char**>(names), &text)) {
    return -1;
  }
  Py_ssize_t length = 0;
  const char* name = PyUnicode_AsUTF8AndSize(text, &length);
  if (name == nullptr) return -1;
  auto* opener = reinterpret_cast<Opener*>(self);
  opener->kind = ScopeKind::kRegion;
  try {
    opener->site = intern_site(SiteCategory::kRegion, {name, static_cast<size_t>(length)});
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return -1;
  }
  return 0;
}

int step_init(PyObject* self, PyObject* args, PyObject*) {
  int kind = 0;
  long long rows = -1;
  long long tokens = -1;
  if (!PyArg_ParseTuple(args, "iLL:StepRegion", &kind, &rows, &tokens)) return -1;
  auto* opener = reinterpret_cast<Opener*>(self);
  opener->kind = ScopeKind::kStep;
  opener->step_kind = static_cast<StepKind>(kind);
  opener->step_rows = rows < 0 ? kNone32 : static_cast<uint32_t>(rows);
  opener->tokens_committed = tokens < 0 ? kNone32 : static_cast<uint32_t>(tokens);
  return 0;
}

int request_init(PyObject* self, PyObject*, PyObject*) {
  reinterpret_cast<Opener*>(self)->kind = ScopeKind::kRequest;
  return 0;
}

void opener_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMethodDef opener_methods[] = {
    {"__enter__", opener_enter, METH_NOARGS, nullptr},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(opener_exit)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyMethodDef module_methods[] = {
    {"set_request_hook",
     reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(set_request_hook)), METH_FASTCALL,
     "Says what numbers the requests without a generate() in a recorder; None takes it away."},
    {nullptr, nullptr, 0, nullptr}};

bool add_opener(PyObject* module, const char* qualified, const char* name, initproc init) {
  PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                         {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(opener_dealloc)},
                         {Py_tp_methods, opener_methods},
                         {0, nullptr}};
  PyType_Spec spec = {qualified, sizeof(Opener), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
                      slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) return false;
  return PyModule_AddObject(module, name, type) == 0;
}

}  // namespace

Scope* current_scope() noexcept { return open_scope(innermost_scope()); }

Scope* Scope::nearest_open(Scope* Scope::* nearest) noexcept {
  Scope* found = this->*nearest;
  while (found != nullptr && !found->is_open) {
    found = found->outer == nullptr ? nullptr : found->outer->*nearest;
  }
  return found;
}

Enclosing enclosing(const Recorder& recorder) noexcept {
  Enclosing result;
  Scope* scope = current_scope();
  if (scope == nullptr) return result;
  const int slot = recorder.slot();
  const uint64_t thread_uid = tls_thread_state == nullptr ? 0 : tls_thread_state->uid;
  const Scope* region = scope->nearest_open(&Scope::region);
  if (region != nullptr && region->thread_uid == thread_uid &&
      region->entries[slot].uid == recorder.uid()) {
    result.seq = region->seq;
  }
  const Scope* step = scope->nearest_open(&Scope::step);
  if (step != nullptr && step->entries[slot].uid == recorder.uid()) {
    result.step = step->entries[slot].step;
  }
  return result;
}

uint32_t request_generation(Scope* request, Recorder& recorder) {
  ScopeEntry& entry = request->entries[recorder.slot()];
  if (entry.uid == recorder.uid()) return entry.generation;
  entry.uid = recorder.uid();
  entry.generation = kNone32;
  const RequestHook& held = request_hooks[recorder.slot()];
  if (held.hook == nullptr || held.uid != recorder.uid()) return kNone32;
  PyObject* hook = Py_NewRef(held.hook);
  PyObject* number = PyObject_CallNoArgs(hook);
  const int64_t generation = host_integer(number, -1);
  if (number == nullptr || generation < 0) {
    discard_error();
    recorder.count_fault();
  } else {
    entry.generation = static_cast<uint32_t>(generation);
  }
  Py_XDECREF(number);
  Py_DECREF(hook);
  return entry.generation;
}

uint32_t begin_step_region(Scope* step, Recorder& recorder, ThreadBuffer& buffer,
                           const StepLengths& lengths, uint32_t generation) noexcept {
  ScopeEntry& entry = step->entries[recorder.slot()];
  if (entry.uid != recorder.uid()) {
    entry.uid = recorder.uid();
    entry.step = recorder.next_step();
    entry.forwards = 0;
    const bool has_rows = step->step_rows != kNone32;
    const uint32_t rows = has_rows ? step->step_rows : lengths.rows;
    const uint32_t detail =
        static_cast<uint32_t>(step->step_kind) | kStepDeclared | (has_rows ? kStepRowsDeclared : 0);
    buffer.push({step->start_ticks, uint64_t{rows} << 32 | lengths.query_len,
                 make_tag(RecordType::kStepBegin, detail), generation, lengths.past, entry.step});
  }
  ++entry.forwards;
  return entry.step;
}

bool add_scope_types(PyObject* module) {
  scope_var = PyContextVar_New("pertoken_scope", nullptr);
  scope_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&scope_spec));
  return scope_var != nullptr && scope_type != nullptr &&
         add_opener(module, "pertoken._native.Region", "Region", region_init) &&
         add_opener(module, "pertoken._native.StepRegion", "StepRegion", step_init) &&
         add_opener(module, "pertoken._native.RequestRegion", "RequestRegion", request_init) &&
         PyModule_AddFunctions(module, module_methods) == 0;
}

}  // namespace pertoken::bindings
