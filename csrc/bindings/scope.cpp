#include "bindings/scope.h"

#include <cstdlib>
#include <cstring>
#include <new>
#include <string_view>

#include "bindings/declared_logits.h"
#include "bindings/device_calls.h"
#include "bindings/opener.h"
#include "bindings/scope_links.h"
#include "bindings/step_region.h"
#include "core/step_data.h"
#include "core/string_table.h"

namespace pertoken::bindings {

PERTOKEN_STEP_DATA constinit int64_t scopes_entered = 0;

namespace {

PyObject* scope_var = nullptr;  // the context variable
PyTypeObject* scope_type = nullptr;

void scope_dealloc(PyObject* self) {
  auto* scope = reinterpret_cast<Scope*>(self);
  Py_XDECREF(scope->owner);
  for (const ScopeEntry& entry : scope->entries) {
    if (scope->kind == ScopeKind::kRequest) {
      delete entry.logits;
    } else {
      delete entry.device;
    }
  }
  drop_links(scope);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyType_Slot scope_slots[] = {{Py_tp_dealloc, reinterpret_cast<void*>(scope_dealloc)}, {0, nullptr}};
PyType_Spec scope_spec = {"pertoken._native.Scope", sizeof(Scope), 0, Py_TPFLAGS_DEFAULT,
                          scope_slots};

// Of the running context, closed ones included.
Scope* innermost_scope() noexcept {
  PyObject* value = nullptr;
  if (PyContextVar_Get(scope_var, nullptr, &value) < 0) {
    PyErr_Clear();
    return nullptr;
  }
  if (value == nullptr) return nullptr;
  Py_DECREF(value);  // the context keeps it alive
  return value == Py_None ? nullptr : reinterpret_cast<Scope*>(value);
}

// Makes the scope and sets it in the running context. A new reference; nullptr with an exception
// set on failure.
Scope* enter_scope(Opener* opener) {
  auto* scope = reinterpret_cast<Scope*>(scope_type->tp_alloc(scope_type, 0));
  if (scope == nullptr) return nullptr;
  Scope* outer = current_scope();
  scope->kind = opener->kind;
  scope->owner = Py_NewRef(reinterpret_cast<PyObject*>(opener));
  set_link(scope, &Scope::outer, outer);
  if (outer != nullptr) {
    pass_over_closed(outer);
    for (const ScopeLink link : kNearestLinks) set_link(scope, link, outer->*link);
  }
  set_link(scope, link_of(opener->kind), scope);
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
  ++scopes_entered;
  return scope;
}

// The scope that this object's innermost entry made, closed. Those that are still open stay in the
// running context: generators close theirs in any order. A new reference; nullptr when there is
// none, which happens when __exit__ runs in another context.
Scope* leave_scope(PyObject* owner) {
  Scope* const first = innermost_scope();
  Scope* scope = first;
  while (scope != nullptr && (scope->owner != owner || !scope->is_open)) scope = scope->outer;
  if (scope == nullptr) return nullptr;
  Py_INCREF(scope);
  scope->is_open = false;
  pass_over_closed(scope);
  if (scope != first) pass_over_closed(innermost_scope(), scope);
  auto* innermost = reinterpret_cast<PyObject*>(current_scope());
  // Held, since what is garbage may be collected meanwhile.
  innermost = Py_NewRef(innermost == nullptr ? Py_None : innermost);
  PyObject* token = PyContextVar_Set(scope_var, innermost);
  if (token == nullptr) PyErr_Clear();
  Py_XDECREF(token);
  Py_DECREF(innermost);
  return scope;
}

// Remembers which of the regions round a new one is its parent, if any is: until both are closed,
// whatever becomes of those between.
void find_parent(Scope* scope, uint32_t parent_seq) {
  if (scope->parent != nullptr || parent_seq == 0) return;
  for (Scope* outer = scope->outer; outer != nullptr; outer = outer->outer) {
    outer = outer->region;
    if (outer == nullptr) return;
    if (outer->seq == parent_seq && outer->thread_uid == scope->thread_uid) {
      set_link(scope, &Scope::parent, outer);
      return;
    }
  }
}

// What is left of a region's parent when the region ends: generators may have closed it before.
void find_open_parent(Scope* scope) {
  Scope* parent = scope->parent;
  for (; parent != nullptr && !parent->is_open; parent = parent->parent) {
    for (int slot = 0; slot < kMaxRecorders; ++slot) {
      ScopeEntry& entry = scope->entries[slot];
      if (entry.parent_seq == parent->seq) entry.parent_seq = parent->entries[slot].parent_seq;
    }
  }
  if (parent != scope->parent) set_link(scope, &Scope::parent, parent);
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
    find_parent(scope, entry.parent_seq);
    begin_on_device(*scope, slot, recorder, *buffer, scope->seq);
  });
  scope->start_ticks = now_ticks();
}

void end_region(Scope* scope) {
  const uint64_t end_ticks = now_ticks();
  find_open_parent(scope);
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
    end_on_device(*scope, slot, *recorder, {scope->site, scope->seq, 0, entry.step, false});
    if (!recorder->active()) continue;
    const uint32_t parent_seq = entry.on_thread && !is_innermost ? 0 : entry.parent_seq;
    buffer->push({scope->start_ticks, end_ticks, make_tag(RecordType::kSpan, scope->site),
                  scope->seq, parent_seq, entry.step});
  }
}

bool switched_off = false;  // no scope has anybody to be seen by

// Asked once, while the module is loaded: as everywhere in Python, under the GIL.
bool environment_switches_off() {
  const char* text = std::getenv("PERTOKEN");  // NOLINT(concurrency-mt-unsafe)
  return text != nullptr && std::string_view(text) == "0";
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

int request_init(PyObject* self, PyObject*, PyObject*) {
  reinterpret_cast<Opener*>(self)->kind = ScopeKind::kRequest;
  return 0;
}

}  // namespace

PyObject* opener_enter(PyObject* self, PyObject*) {
  if (switched_off) return Py_NewRef(self);
  Scope* scope = enter_scope(reinterpret_cast<Opener*>(self));
  if (scope == nullptr) return nullptr;
  if (scope->kind == ScopeKind::kRegion) {
    begin_region(scope);
  } else {
    if (scope->kind == ScopeKind::kStep) begin_step_on_devices(scope);
    scope->start_ticks = now_ticks();
  }
  Py_DECREF(scope);  // the context holds it
  return Py_NewRef(self);
}

PyObject* opener_exit(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (switched_off) Py_RETURN_NONE;
  const bool failed = count > 0 && args[0] != Py_None;
  if (Scope* scope = leave_scope(self)) {
    if (scope->kind == ScopeKind::kRegion) end_region(scope);
    if (scope->kind == ScopeKind::kStep) end_step_region(scope, failed);
    Py_DECREF(scope);
  }
  Py_RETURN_NONE;
}

void opener_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

bool add_opener(PyObject* module, const char* qualified, const char* name, size_t size,
                initproc init, destructor dealloc, PyMethodDef* methods) {
  PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                         {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                         {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                         {Py_tp_methods, methods},
                         {0, nullptr}};
  PyType_Spec spec = {qualified, static_cast<int>(size), 0,
                      Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, slots};
  PyObject* type = PyType_FromSpec(&spec);
  if (type == nullptr) return false;
  return PyModule_AddObject(module, name, type) == 0;
}

Scope* innermost_open_scope() noexcept { return open_scope(innermost_scope()); }

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

namespace {

PyMethodDef opener_methods[] = {
    {"__enter__", opener_enter, METH_NOARGS, nullptr},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(opener_exit)),
     METH_FASTCALL, nullptr},
    {nullptr, nullptr, 0, nullptr}};

PyObject* is_recording(PyObject*, PyObject*) {
  bool found = false;
  for_each_active([&](int, Recorder&) { found = true; });
  return PyBool_FromLong(found);
}

PyMethodDef module_methods[] = {
    {"is_recording", is_recording, METH_NOARGS, "Whether any recording runs in this process."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

bool add_scope_types(PyObject* module) {
  switched_off = environment_switches_off();
  scope_var = PyContextVar_New("pertoken_scope", nullptr);
  scope_type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&scope_spec));
  return scope_var != nullptr && scope_type != nullptr &&
         add_opener(module, "pertoken._native.Region", "Region", sizeof(Opener), region_init,
                    opener_dealloc, opener_methods) &&
         add_step_region_type(module) &&
         add_opener(module, "pertoken._native.RequestRegion", "RequestRegion", sizeof(Opener),
                    request_init, opener_dealloc, opener_methods) &&
         PyModule_AddFunctions(module, module_methods) == 0;
}

}  // namespace pertoken::bindings
