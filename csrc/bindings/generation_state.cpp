#include "bindings/generation_state.h"

#include <Python.h>
#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <new>

#include "bindings/logit_reader.h"
#include "bindings/scope.h"
#include "bindings/span_call.h"
#include "bindings/step_inputs.h"
#include "core/step_data.h"
#include "core/string_table.h"

namespace pertoken::bindings {

PERTOKEN_STEP_DATA constinit PyTypeObject* generation_state_type = nullptr;
PERTOKEN_STEP_DATA constinit uint32_t generation_states = 0;
PERTOKEN_STEP_DATA constinit uint32_t gap_site = 0;

namespace {

uint32_t region_site = 0;

// A commit of `tokens` a row by the last step: how far the cache really is after it. Where
// candidates are verified, generate() says how many; where it does not, it is one, and the cache
// keeps what it was fed.
void note_commit(GenerationState& state, int64_t tokens, bool is_said) {
  if (state.commits == 0) {
    state.prompt_len = state.past;
    state.first_commit_ticks = state.last_end_ticks;
  }
  const bool told = tokens >= 0;
  if (told && state.last_kind == StepKind::kVerify && state.last_past >= 0) {
    state.past = state.last_past + tokens;  // the rejected candidates are cut off again
  } else {
    // A prefill may verify candidates as well, and some are cut off again. What it keeps of the
    // logits does not say how many: it may be what the user wants. The cache is asked.
    const bool may_cut = state.keep_known
                             ? is_said && std::min(state.last_keep, state.last_query_len) > tokens
                             : state.last_kind == StepKind::kPrefill;
    if (!told || may_cut) state.past = kPastUntold;
  }
  ++state.commits;
  state.says_tokens = is_said;
  if (tokens < 0) {
    state.tokens_unknown = true;
  } else {
    state.tokens += static_cast<uint32_t>(tokens);
  }
}

PyObject* enter(PyObject* self, PyObject*) {
  auto& state = *reinterpret_cast<GenerationState*>(self);
  ThreadBuffer* buffer = state.recorder->active() ? state.recorder->buffer() : nullptr;
  if (buffer == nullptr) Py_RETURN_NONE;
  state.outer_seq = buffer->open_seq;
  state.region_parent_seq =
      buffer->open_seq != 0 ? buffer->open_seq : enclosing(*state.recorder).seq;
  state.thread_uid = tls_thread_state->uid;
  state.region_seq = tls_thread_state->next_seq();
  state.region_start_ticks = now_ticks();
  open_gap(state, *buffer, state.region_start_ticks);
  Py_RETURN_NONE;
}

// leave(returned): the ids that generate() returned, or None.
PyObject* leave(PyObject* self, PyObject* returned) {
  auto& state = *reinterpret_cast<GenerationState*>(self);
  Py_CLEAR(state.last_cache);
  const uint64_t now = now_ticks();
  ThreadBuffer* buffer = state.recorder->buffer();
  if (buffer != nullptr) tell_last_logits(state, *buffer, returned);
  if (buffer == nullptr || !open_here(state)) Py_RETURN_NONE;
  if (state.recorder->active()) {
    close_gap(state, *buffer, now, kNone32);
    buffer->push({state.region_start_ticks, now, make_tag(RecordType::kSpan, region_site),
                  state.region_seq, state.region_parent_seq, kNone32});
  }
  buffer->open_seq = state.outer_seq;
  state.thread_uid = 0;
  Py_RETURN_NONE;
}

int state_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* recorder = nullptr;
  unsigned int generation = 0;
  unsigned int depth = 0;
  int fresh_cache = 0;
  int is_chunked = 0;
  int has_beams = 0;
  unsigned long long model = 0;
  if (!PyArg_ParseTuple(args, "OIIpKp|p:GenerationState", &recorder, &generation, &depth,
                        &fresh_cache, &model, &is_chunked, &has_beams)) {
    return -1;
  }
  auto& state = *reinterpret_cast<GenerationState*>(self);
  state.recorder = recorder_of(recorder);
  if (state.recorder == nullptr) return -1;
  if (state.owner == nullptr) ++generation_states;
  Py_XSETREF(state.owner, Py_NewRef(recorder));
  state.generation = generation;
  state.depth = depth;
  state.model = model;
  state.fresh_cache = fresh_cache != 0;
  state.is_chunked = is_chunked != 0;
  state.has_beams = has_beams != 0;
  state.last_step = kNone32;
  state.prompt_len = -1;
  return 0;
}

void state_dealloc(PyObject* self) {
  auto& state = *reinterpret_cast<GenerationState*>(self);
  if (state.owner != nullptr) --generation_states;
  Py_CLEAR(state.owner);
  Py_CLEAR(state.last_cache);
  delete state.logits;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef state_members[] = {
    {"generation", T_UINT, offsetof(GenerationState, generation), READONLY, nullptr},
    {"depth", T_UINT, offsetof(GenerationState, depth), READONLY, nullptr},
    {"model", T_ULONGLONG, offsetof(GenerationState, model), READONLY, nullptr},
    {"steps", T_UINT, offsetof(GenerationState, steps), READONLY, nullptr},
    {"commits", T_UINT, offsetof(GenerationState, commits), READONLY, nullptr},
    {"tokens", T_UINT, offsetof(GenerationState, tokens), READONLY, nullptr},
    {"tokens_unknown", T_BOOL, offsetof(GenerationState, tokens_unknown), READONLY, nullptr},
    {"prompt_len", T_LONGLONG, offsetof(GenerationState, prompt_len), READONLY, nullptr},
    {"last_end_ticks", T_ULONGLONG, offsetof(GenerationState, last_end_ticks), READONLY, nullptr},
    {"first_commit_ticks", T_ULONGLONG, offsetof(GenerationState, first_commit_ticks), READONLY,
     nullptr},
    {"region_start_ticks", T_ULONGLONG, offsetof(GenerationState, region_start_ticks), READONLY,
     nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMethodDef state_methods[] = {{"enter", enter, METH_NOARGS, nullptr},
                               {"leave", leave, METH_O, nullptr},
                               {nullptr, nullptr, 0, nullptr}};

PyType_Slot state_slots[] = {{Py_tp_init, reinterpret_cast<void*>(state_init)},
                             {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                             {Py_tp_dealloc, reinterpret_cast<void*>(state_dealloc)},
                             {Py_tp_members, state_members},
                             {Py_tp_methods, state_methods},
                             {0, nullptr}};
PyType_Spec state_spec = {"pertoken._native.GenerationState", sizeof(GenerationState), 0,
                          Py_TPFLAGS_DEFAULT, state_slots};

// Stands in the class for _update_model_kwargs_for_generation, which generate() calls once for
// every step that commits, with the number of tokens: passes the call on and notes the number.
struct CommitCall {
  PyObject_HEAD
  PyObject* inner;
  PyObject* generation_var;
};

PyObject* num_new_tokens_name = nullptr;

// An assistant of the same class commits to its own drafts.
bool is_of(const GenerationState& state, PyObject* args) {
  return PyTuple_GET_SIZE(args) > 0 &&
         reinterpret_cast<uint64_t>(PyTuple_GET_ITEM(args, 0)) == state.model;
}

PyObject* commit_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  auto* call = reinterpret_cast<CommitCall*>(self);
  PyObject* value = nullptr;
  if (PyContextVar_Get(call->generation_var, nullptr, &value) < 0) PyErr_Clear();
  if (value != nullptr && Py_IS_TYPE(value, generation_state_type) &&
      is_of(*reinterpret_cast<GenerationState*>(value), args)) {
    auto& state = *reinterpret_cast<GenerationState*>(value);
    constexpr Py_ssize_t kPosition = 4;  // self, outputs, model_kwargs, is_encoder_decoder
    PyObject* given = PyTuple_GET_SIZE(args) > kPosition ? PyTuple_GET_ITEM(args, kPosition)
                      : kwargs != nullptr ? PyDict_GetItemWithError(kwargs, num_new_tokens_name)
                                          : nullptr;
    int64_t tokens = given == nullptr ? 1 : host_integer(given, -1);
    if (tokens >= int64_t{kNone32}) tokens = -1;
    const uint32_t tokens_before = state.tokens;
    note_commit(state, tokens, given != nullptr);
    ThreadBuffer* buffer = state.recorder->active() ? state.recorder->buffer() : nullptr;
    if (buffer != nullptr && tokens >= 0 && state.depth == 0 && state.last_step != kNone32) {
      buffer->push({tokens_before, static_cast<uint64_t>(tokens), make_tag(RecordType::kCommit, 0),
                    0, 0, state.last_step});
    }
  }
  Py_XDECREF(value);
  return call_inner(call->inner, args, kwargs);
}

int commit_init(PyObject* self, PyObject* args, PyObject*) {
  auto* call = reinterpret_cast<CommitCall*>(self);
  if (!PyArg_ParseTuple(args, "OO:CommitCall", &call->inner, &call->generation_var)) return -1;
  Py_INCREF(call->inner);
  Py_INCREF(call->generation_var);
  return 0;
}

void commit_dealloc(PyObject* self) {
  auto* call = reinterpret_cast<CommitCall*>(self);
  Py_CLEAR(call->inner);
  Py_CLEAR(call->generation_var);
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef commit_members[] = {
    {"inner", T_OBJECT, offsetof(CommitCall, inner), 0, nullptr},
    {"__wrapped__", T_OBJECT, offsetof(CommitCall, inner), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot commit_slots[] = {{Py_tp_init, reinterpret_cast<void*>(commit_init)},
                              {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                              {Py_tp_dealloc, reinterpret_cast<void*>(commit_dealloc)},
                              {Py_tp_call, reinterpret_cast<void*>(commit_call)},
                              {Py_tp_descr_get, reinterpret_cast<void*>(bind_method)},
                              {Py_tp_members, commit_members},
                              {0, nullptr}};
PyType_Spec commit_spec = {"pertoken._native.CommitCall", sizeof(CommitCall), 0, Py_TPFLAGS_DEFAULT,
                           commit_slots};

}  // namespace

bool add_generation_types(PyObject* module) {
  try {
    region_site = intern_site(SiteCategory::kRegion, "generate");
    gap_site = intern_site(SiteCategory::kGenerate, "generate: outside forward");
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return false;
  }
  num_new_tokens_name = PyUnicode_InternFromString("num_new_tokens");
  PyObject* state = PyType_FromSpec(&state_spec);
  PyObject* commit = PyType_FromSpec(&commit_spec);
  if (num_new_tokens_name == nullptr || state == nullptr || commit == nullptr) return false;
  generation_state_type = reinterpret_cast<PyTypeObject*>(state);
  return PyModule_AddObject(module, "GenerationState", Py_NewRef(state)) == 0 &&
         PyModule_AddObject(module, "CommitCall", commit) == 0;
}

}  // namespace pertoken::bindings
