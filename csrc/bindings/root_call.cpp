// The root's wrapper: times the forward as a span and describes it as a step. Under the GIL, on
// the model's thread, once a step. It may cost a microsecond; it may not raise, block or disturb.
#include <Python.h>
#include <structmember.h>

#include <cstddef>
#include <memory>
#include <new>
#include <vector>

#include "bindings/call_slots.h"
#include "bindings/compiled_layers.h"
#include "bindings/declared_logits.h"
#include "bindings/device_calls.h"
#include "bindings/generation_state.h"
#include "bindings/host_tensor.h"
#include "bindings/logit_reader.h"
#include "bindings/request_numbers.h"
#include "bindings/root_time.h"
#include "bindings/sampled_forward.h"
#include "bindings/span_call.h"
#include "bindings/step_inputs.h"
#include "bindings/step_plan.h"
#include "bindings/step_region.h"

namespace pertoken::bindings {

namespace {

struct RootCall {
  SpanCall base;  // first, so that span_call_* work on it
  PyObject* generation_var;
  ForwardSignature* signature;
  bool is_span_when_nested;   // in another root's step; else such a call is not recorded
  uint64_t only_generate_of;  // steps only in this model's generate() or in none; 0: in any
};

// The first steps of a generate(): its prefill, and what comes next.
inline constexpr uint32_t kFavouredSteps = 2;

PyObject* mask_of(const RootCall& call, PyObject* args, PyObject* kwargs) {
  return call.signature->find(ArgumentRole::kMask, args, kwargs);
}

// Before the forward: what runs inside an observed step is to know it by. Of others, what becomes a
// part of a graph is, since every replay is another step.
void open_observed(const Recorder& recorder, const ObservedStep& observed, const StepPlan& plan,
                   PyObject* mask, std::vector<ValidRun>& valid, ThreadBuffer& buffer) {
  buffer.observed.ticks = observed.ticks;
  buffer.observed.weight = 0;
  if ((observed.weight == 0 && !has_open_captures(recorder)) || is_being_traced()) return;
  buffer.open_detail |= kDetailActivations;
  buffer.observed = observed;
  buffer.observed.rows = buffer.observed.batch_rows = plan.rows;
  buffer.observed.positions = plan.query_len;
  if (mask == nullptr || plan.rows < 1) return;
  if (valid_runs(mask, plan.rows, plan.past, plan.query_len, valid)) {
    buffer.observed.valid = &valid;
  }
}

// After it. `step` is that of what the root itself put out.
void close_observed(const RootCall& call, ThreadBuffer& buffer, uint32_t step, PyObject* result) {
  if ((buffer.open_detail & kDetailActivations) == 0) return;
  const uint32_t outer_step = buffer.open_step;
  buffer.open_step = step;
  observe_result(call.base, buffer, result);
  buffer.open_step = outer_step;
  buffer.observed.valid = nullptr;
}

LogitStep logit_step(const StepPlan& plan, uint32_t step) {
  return {step, plan.kind, plan.rows, plan.query_len, plan.past, plan.keep};
}

// Layers that are open in what was compiled: their ends were not told, or went unseen.
PyObject* close_cut_layers(Recorder& recorder, ThreadBuffer& buffer, PyObject* result) {
  if (result == nullptr || !recorder.active()) [[unlikely]]
    close_compiled_layers(recorder, buffer);
  return result;
}

PyObject* call_forward(const RootCall& call, PyObject* args, PyObject* kwargs,
                       ThreadBuffer& buffer) {
  return close_cut_layers(*call.base.recorder, buffer, call.base.inner.call(args, kwargs));
}

PyObject* timed_forward(const RootCall& call, PyObject* args, PyObject* kwargs,
                        ThreadBuffer& buffer, uint32_t parent, uint32_t step) {
  Recorder& recorder = *call.base.recorder;
  return close_cut_layers(
      recorder, buffer,
      timed_call(call.base.inner, args, kwargs, recorder, buffer, call.base.site, parent, step));
}

// Apart, so that a step without a device pays for no room for its intervals. What these take is the
// root's, though within the step.
[[gnu::noinline]] PyObject* call_step_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                                                 ThreadBuffer& buffer, uint32_t seq, uint32_t step,
                                                 uint64_t& root_ticks) {
  const uint64_t begun_ticks = now_ticks();
  DeviceIntervals devices(*call.base.recorder, buffer, seq);
  root_ticks += now_ticks() - begun_ticks;
  PyObject* result = call_forward(call, args, kwargs, buffer);
  const uint64_t ended_ticks = now_ticks();
  devices.end({call.base.site, seq, 0, step, true});
  root_ticks += now_ticks() - ended_ticks;
  return result;
}

// In a step that the user declared, which has its own time on the device.
[[gnu::noinline]] PyObject* call_timed_on_devices(RootCall& call, PyObject* args, PyObject* kwargs,
                                                  ThreadBuffer& buffer, uint32_t parent,
                                                  uint32_t step, uint64_t& root_ticks) {
  const uint64_t begun_ticks = now_ticks();
  const uint32_t seq = tls_thread_state->coming_seq();
  DeviceIntervals devices(*call.base.recorder, buffer, seq);
  root_ticks += now_ticks() - begun_ticks;
  PyObject* result = timed_forward(call, args, kwargs, buffer, parent, step);
  const uint64_t ended_ticks = now_ticks();
  devices.end({call.base.site, seq, 0, step, false});
  root_ticks += now_ticks() - ended_ticks;
  return result;
}

// A forward in a step that the user or an engine declares, and that is begun already.
PyObject* call_in_region(RootCall& call, const StepPlan& plan, PyObject* args, PyObject* kwargs,
                         ThreadBuffer& buffer, Scope* region, uint32_t step, RootTime& time) {
  Recorder& recorder = *call.base.recorder;
  ScopeEntry& entry = region->entries[recorder.slot()];
  const uint32_t parent = buffer.open_seq != 0 ? buffer.open_seq : enclosing(recorder).seq;
  const SampledForward sampled =
      SampledForward::in_region(recorder, buffer, region->step_kind, step, entry);
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail = sampled.open_detail();
  std::vector<ValidRun> valid;
  PyObject* const mask = mask_of(call, args, kwargs);
  open_observed(recorder, entry.observed, plan, mask, valid, buffer);
  begin_slots(recorder, buffer);
  if (buffer.observed.weight != 0) place_told_rows(region, buffer.observed, valid);
  LogitReader* const logits = entry.forwards == 1 ? recorder.logit_reader() : nullptr;
  std::unique_ptr<DeclaredLogits> declared;
  if (logits != nullptr) {
    declared = begin_declared_logits(*logits, recorder, buffer, region, logit_step(plan, step),
                                     {call.signature->find(ArgumentRole::kIds, args, kwargs), mask,
                                      call.signature->find(ArgumentRole::kKeep, args, kwargs)});
  }
  const uint64_t observed_before = buffer.observed.ticks;
  const uint64_t start_ticks = now_ticks();
  time.begin_forward(buffer, region->step_kind, start_ticks);
  uint64_t& root_ticks = buffer.root_ticks[static_cast<size_t>(region->step_kind)];
  PyObject* result =
      recorder.device_calls() == nullptr
          ? timed_forward(call, args, kwargs, buffer, parent, step)
          : call_timed_on_devices(call, args, kwargs, buffer, parent, step, root_ticks);
  const uint64_t end_ticks = now_ticks();
  const uint64_t dur_ticks = end_ticks - start_ticks;
  time.end_forward(buffer, end_ticks);
  end_slots(recorder);
  if (recorder.active() && buffer.unrecorded) push_unrecorded(buffer, step);
  sampled.settle(buffer, dur_ticks - (buffer.observed.ticks - observed_before), buffer.unrecorded);
  close_observed(call, buffer, step, result);
  // NOLINTNEXTLINE(clang-analyzer-core.NonNullParamChecker): declared only where there are logits
  if (declared != nullptr) end_declared_logits(*logits, *declared, recorder, buffer, result);
  entry.observed.ticks = buffer.observed.ticks;
  buffer.open_detail = outer_detail;
  return result;
}

PyObject* call_step(RootCall& call, GenerationState* state, PyObject* args, PyObject* kwargs,
                    ThreadBuffer& buffer, RootTime& time) {
  Recorder& recorder = *call.base.recorder;
  Scope* scope = current_scope();
  StepPlan plan = plan_step(*call.signature, recorder, state, args, kwargs);
  const bool keep_known = call.signature->knows(ArgumentRole::kKeep);
  Scope* request = scope == nullptr ? nullptr : scope->nearest_open(&Scope::request);
  if (state == nullptr && request != nullptr) {
    plan.generation = request_generation(request, recorder);
  }
  Scope* step_region = scope == nullptr ? nullptr : scope->nearest_open(&Scope::step);
  if (step_region != nullptr) {
    const uint32_t step = begin_step_region(
        step_region, recorder, buffer,
        {.rows = narrow(plan.rows), .query_len = narrow(plan.query_len), .past = narrow(plan.past)},
        plan.generation);
    // What a forward of generate() commits here is for the user's step to say.
    if (state != nullptr) note_step(*state, plan, keep_known, kNone32);
    PyObject* result = call_in_region(call, plan, args, kwargs, buffer, step_region, step, time);
    if (state != nullptr) state->last_end_ticks = now_ticks();
    return result;
  }

  const uint32_t step = recorder.next_step();
  PyObject* mask = state == nullptr || state->commits == 0 ? mask_of(call, args, kwargs) : nullptr;
  if (mask != nullptr && plan.rows > 0) push_padding(plan, mask, buffer, step);
  const bool is_favoured = state != nullptr && state->steps < kFavouredSteps;
  PackedChoices choices;
  LogitReader* const logits = state == nullptr ? nullptr : recorder.logit_reader();
  const bool reads_logits =
      logits != nullptr &&
      begin_logits(*logits, *state, buffer, logit_step(plan, step),
                   call.signature->find(ArgumentRole::kIds, args, kwargs), is_favoured, choices);
  if (state != nullptr) note_step(*state, plan, keep_known, step);

  if (samples_spans(recorder)) plan.flags |= kStepSampled;
  const ObservedStep observed =
      choose_observation(recorder, buffer, plan.kind, is_favoured, choices);
  const SampledForward sampled =
      SampledForward::choose(recorder, buffer, plan.kind, is_favoured, choices);
  std::vector<ValidRun> valid;
  const uint32_t outer_detail = buffer.open_detail;
  buffer.open_detail = sampled.open_detail();
  open_observed(recorder, observed, plan, mask, valid, buffer);
  // Before its time begins.
  begin_slots(recorder, buffer);
  const uint64_t start_ticks = now_ticks();
  time.begin_forward(buffer, plan.kind, start_ticks);
  buffer.push({start_ticks, uint64_t{narrow(plan.rows)} << 32 | narrow(plan.query_len),
               make_tag(RecordType::kStepBegin, static_cast<uint32_t>(plan.kind) | plan.flags),
               plan.generation, narrow(plan.past), step});
  sampled.push_detail(buffer, step);
  if (state != nullptr) close_gap(*state, buffer, start_ticks, step);
  const uint32_t outer_seq = buffer.open_seq;
  const uint32_t parent_seq = outer_seq != 0 ? outer_seq : enclosing(recorder).seq;
  const uint32_t seq = tls_thread_state->next_seq();
  const uint64_t pushed_before = buffer.pushed();
  buffer.open_seq = seq;
  buffer.open_step = step;
  PyObject* result = recorder.device_calls() == nullptr
                         ? call_forward(call, args, kwargs, buffer)
                         : call_step_on_devices(call, args, kwargs, buffer, seq, step,
                                                buffer.root_ticks[static_cast<size_t>(plan.kind)]);
  const uint64_t end_ticks = now_ticks();
  time.end_forward(buffer, end_ticks);
  end_slots(recorder);
  sampled.settle(buffer, end_ticks - start_ticks - buffer.observed.ticks, buffer.unrecorded);
  close_observed(call, buffer, step, result);
  charge_observation(recorder, buffer, plan.kind, buffer.observed);
  if (reads_logits) end_logits(*logits, *state, result);
  buffer.open_seq = outer_seq;
  buffer.open_step = kNone32;
  buffer.open_detail = outer_detail;
  if (recorder.active()) {
    buffer.push({start_ticks, end_ticks, make_tag(RecordType::kSpan, call.base.site), seq,
                 parent_seq, step});
    const uint32_t flags = (result == nullptr ? kStepFailed : 0) |
                           (buffer.pushed() == pushed_before + 1 ? kStepBare : 0);
    if (buffer.unrecorded) push_unrecorded(buffer, step);
    const StepCost cost{buffer.observed.ticks, buffer.take_root_ticks(plan.kind)};
    buffer.push({end_ticks, cost.bits(), make_tag(RecordType::kStepEnd, flags),
                 static_cast<uint32_t>(sampled.choices().bits()),
                 static_cast<uint32_t>(sampled.choices().bits() >> 32), step});
  }
  if (reads_logits) charge_read_logits(*state, buffer);
  if (state != nullptr) {
    state->last_end_ticks = end_ticks;
    open_gap(*state, buffer, end_ticks);
  }
  return result;
}

// A root inside a root's forward, by recursion or as the model in a wrapper: the outermost is the
// step.
PyObject* call_nested(RootCall& call, PyObject* args, PyObject* kwargs) {
  if (!call.is_span_when_nested) return call.base.inner.call(args, kwargs);
  return span_call(reinterpret_cast<PyObject*>(&call), args, kwargs);
}

PyObject* root_call(PyObject* self, PyObject* args, PyObject* kwargs) {
  const uint64_t entered_ticks = now_ticks();
  auto& call = *reinterpret_cast<RootCall*>(self);
  Recorder& recorder = *call.base.recorder;
  ThreadBuffer* buffer = recorder.active() ? recorder.buffer() : nullptr;
  if (buffer == nullptr) return call.base.inner.call(args, kwargs);
  if (buffer->open_step != kNone32) return call_nested(call, args, kwargs);

  PyObject* value = nullptr;
  if (generation_states != 0 && PyContextVar_Get(call.generation_var, nullptr, &value) < 0) {
    PyErr_Clear();
  }
  GenerationState* state = nullptr;
  if (value != nullptr && Py_IS_TYPE(value, generation_state_type)) {
    state = reinterpret_cast<GenerationState*>(value);
  }
  const bool is_step =
      state == nullptr || call.only_generate_of == 0 || call.only_generate_of == state->model;
  ++tls_open_roots;
  PyObject* result = nullptr;
  if (is_step) {
    RootTime time(*buffer, entered_ticks);
    result = call_step(call, state, args, kwargs, *buffer, time);
    Py_XDECREF(value);
    time.end(*buffer);
  } else {
    result = call_nested(call, args, kwargs);
    Py_XDECREF(value);
  }
  --tls_open_roots;
  return result;
}

int root_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* inner = nullptr;
  PyObject* recorder = nullptr;
  PyObject* generation_var = nullptr;
  PyObject* places = nullptr;  // a list of (role, keyword, position)
  unsigned int site = 0;
  int takes_first_positional = 0;
  int is_span_when_nested = 1;
  unsigned long long only_generate_of = 0;
  PyObject* observer = nullptr;
  unsigned int span_detail = kDetailLayers;
  if (!PyArg_ParseTuple(args, "OOIOO!ppK|IO:RootCall", &inner, &recorder, &site, &generation_var,
                        &PyList_Type, &places, &takes_first_positional, &is_span_when_nested,
                        &only_generate_of, &span_detail, &observer)) {
    return -1;
  }
  auto& call = *reinterpret_cast<RootCall*>(self);
  if (span_call_init(&call.base, inner, recorder, site, span_detail, observer) < 0) return -1;
  call.generation_var = Py_NewRef(generation_var);
  call.is_span_when_nested = is_span_when_nested != 0;
  call.only_generate_of = only_generate_of;
  try {
    call.signature = new ForwardSignature;
    call.signature->takes_first_positional = takes_first_positional != 0;
    for (Py_ssize_t i = 0; i < PyList_GET_SIZE(places); ++i) {
      int role = 0;
      int position = -1;
      PyObject* keyword = nullptr;
      if (!PyArg_ParseTuple(PyList_GET_ITEM(places, i), "iUi", &role, &keyword, &position)) {
        return -1;
      }
      if (role < 0 || role >= kArgumentRoles) {
        PyErr_SetString(PyExc_ValueError, "no such argument role");
        return -1;
      }
      call.signature->add(static_cast<ArgumentRole>(role), keyword, position);
    }
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return -1;
  }
  return 0;
}

int root_traverse(PyObject* self, visitproc visit, void* arg) {
  auto& call = *reinterpret_cast<RootCall*>(self);
  Py_VISIT(call.generation_var);
  return span_call_traverse(self, visit, arg);
}

int root_clear(PyObject* self) { return span_call_clear(self); }

void root_dealloc(PyObject* self) {
  PyObject_GC_UnTrack(self);
  auto& call = *reinterpret_cast<RootCall*>(self);
  if (call.base.weakrefs != nullptr) PyObject_ClearWeakRefs(self);
  span_call_release(&call.base);
  Py_CLEAR(call.generation_var);
  delete call.signature;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

PyMemberDef root_members[] = {
    {"__weaklistoffset__", T_PYSSIZET, offsetof(RootCall, base.weakrefs), READONLY, nullptr},
    {"site", T_UINT, offsetof(RootCall, base.site), READONLY, nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyMethodDef root_methods[] = {{"__reduce_ex__", span_call_reduce, METH_O, nullptr},
                              {nullptr, nullptr, 0, nullptr}};

PyType_Slot root_slots[] = {{Py_tp_init, reinterpret_cast<void*>(root_init)},
                            {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                            {Py_tp_dealloc, reinterpret_cast<void*>(root_dealloc)},
                            {Py_tp_traverse, reinterpret_cast<void*>(root_traverse)},
                            {Py_tp_clear, reinterpret_cast<void*>(root_clear)},
                            {Py_tp_call, reinterpret_cast<void*>(root_call)},
                            {Py_tp_members, root_members},
                            {Py_tp_getset, span_call_attributes},
                            {Py_tp_methods, root_methods},
                            {0, nullptr}};
PyType_Spec root_spec = {"pertoken._native.RootCall", sizeof(RootCall), 0,
                         Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_BASETYPE, root_slots};

}  // namespace

bool add_root_call_type(PyObject* module) {
  PyObject* type = PyType_FromSpec(&root_spec);
  return type != nullptr && PyModule_AddObject(module, "RootCall", type) == 0;
}

}  // namespace pertoken::bindings
