#include "bindings/request_numbers.h"

#include <structmember.h>

#include <algorithm>
#include <cstddef>
#include <new>
#include <vector>

#include "bindings/owned.h"
#include "bindings/span_call.h"
#include "bindings/step_inputs.h"

namespace pertoken::bindings {

namespace {

PyTypeObject* row_request_type = nullptr;
PyTypeObject* row_sequence_type = nullptr;

// What Python answers for the recorder in a slot, while it is installed.
struct RequestHooks {
  uint64_t uid = 0;
  PyObject* running = nullptr;  // () -> generation that stands for the running request
  PyObject* row = nullptr;      // (RowRequest) -> RowSequence
  std::vector<uint64_t> models;
};
RequestHooks request_hooks[kMaxRecorders];

PyObject* set_request_hooks(PyObject*, PyObject* args) {
  PyObject* object = nullptr;
  PyObject* running = nullptr;
  PyObject* row = nullptr;
  PyObject* models = nullptr;
  if (!PyArg_ParseTuple(args, "OOOO!:set_request_hooks", &object, &running, &row, &PyTuple_Type,
                        &models)) {
    return nullptr;
  }
  const Recorder* recorder = recorder_of(object);
  if (recorder == nullptr) return nullptr;
  std::vector<uint64_t> identities;
  try {
    for (Py_ssize_t i = 0; i < PyTuple_GET_SIZE(models); ++i) {
      identities.push_back(PyLong_AsUnsignedLongLong(PyTuple_GET_ITEM(models, i)));
    }
  } catch (const std::bad_alloc&) {
    return PyErr_NoMemory();
  }
  if (PyErr_Occurred() != nullptr) return nullptr;
  RequestHooks& held = request_hooks[recorder->slot()];
  // A recorder that stopped may have left its slot to another.
  if (running == Py_None && held.uid != recorder->uid()) Py_RETURN_NONE;
  PyObject* running_before = held.running;
  PyObject* row_before = held.row;
  held.uid = recorder->uid();
  held.running = running == Py_None ? nullptr : Py_NewRef(running);
  held.row = row == Py_None ? nullptr : Py_NewRef(row);
  held.models = std::move(identities);
  Py_XDECREF(running_before);
  Py_XDECREF(row_before);
  Py_RETURN_NONE;
}

int sequence_init(PyObject* self, PyObject* args, PyObject*) {
  PyObject* object = nullptr;
  unsigned int generation = 0;
  if (!PyArg_ParseTuple(args, "OI:RowSequence", &object, &generation)) return -1;
  const Recorder* recorder = recorder_of(object);
  if (recorder == nullptr) return -1;
  auto* sequence = reinterpret_cast<RowSequence*>(self);
  sequence->run_uid = recorder->run_uid();
  sequence->generation = generation;
  return 0;
}

void plain_dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

void request_dealloc(PyObject* self) {
  for (RowSequence*& sequence : reinterpret_cast<RowRequest*>(self)->sequences) {
    Py_CLEAR(sequence);
  }
  plain_dealloc(self);
}

// number(recorder): numbers the request before its first row, which may never come.
PyObject* request_number(PyObject* self, PyObject* object) {
  Recorder* recorder = recorder_of(object);
  if (recorder == nullptr) return nullptr;
  row_sequence(reinterpret_cast<RowRequest*>(self), *recorder);
  if (PyErr_Occurred() != nullptr) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef request_methods[] = {{"number", request_number, METH_O, nullptr},
                                 {nullptr, nullptr, 0, nullptr}};

PyMemberDef sequence_members[] = {
    {"generation", T_UINT, offsetof(RowSequence, generation), READONLY, nullptr},
    {"tokens", T_UINT, offsetof(RowSequence, tokens), READONLY, nullptr},
    {"tokens_unknown", T_BOOL, offsetof(RowSequence, tokens_unknown), READONLY, nullptr},
    {"first_commit_ticks", T_ULONGLONG, offsetof(RowSequence, first_commit_ticks), READONLY,
     nullptr},
    {nullptr, 0, 0, 0, nullptr}};

PyType_Slot sequence_slots[] = {{Py_tp_init, reinterpret_cast<void*>(sequence_init)},
                                {Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                                {Py_tp_dealloc, reinterpret_cast<void*>(plain_dealloc)},
                                {Py_tp_members, sequence_members},
                                {0, nullptr}};
PyType_Spec sequence_spec = {"pertoken._native.RowSequence", sizeof(RowSequence), 0,
                             Py_TPFLAGS_DEFAULT, sequence_slots};

PyType_Slot request_slots[] = {{Py_tp_new, reinterpret_cast<void*>(PyType_GenericNew)},
                               {Py_tp_dealloc, reinterpret_cast<void*>(request_dealloc)},
                               {Py_tp_methods, request_methods},
                               {0, nullptr}};
PyType_Spec request_spec = {"pertoken._native.RowRequest", sizeof(RowRequest), 0,
                            Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE, request_slots};

PyMethodDef module_methods[] = {
    {"set_request_hooks", set_request_hooks, METH_VARARGS,
     "Says what numbers the requests in a recorder, and whose models it records."},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

uint32_t request_generation(Scope* request, Recorder& recorder) {
  ScopeEntry& entry = request->entries[recorder.slot()];
  if (entry.uid == recorder.uid()) return entry.generation;
  entry.uid = recorder.uid();
  entry.generation = kNone32;
  const RequestHooks& held = request_hooks[recorder.slot()];
  if (held.running == nullptr || held.uid != recorder.uid()) return kNone32;
  const Owned held_request(Py_NewRef(reinterpret_cast<PyObject*>(request)));
  PyObject* hook = Py_NewRef(held.running);
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

RowSequence* known_row_sequence(const RowRequest* request, const Recorder& recorder) noexcept {
  RowSequence* known = request->sequences[recorder.slot()];
  return known != nullptr && known->run_uid == recorder.run_uid() ? known : nullptr;
}

RowSequence* row_sequence(RowRequest* request, Recorder& recorder) {
  if (RowSequence* known = known_row_sequence(request, recorder)) return known;
  const RequestHooks& held = request_hooks[recorder.slot()];
  if (held.row == nullptr || held.uid != recorder.uid()) return nullptr;
  PyObject* hook = Py_NewRef(held.row);
  PyObject* answer = PyObject_CallOneArg(hook, reinterpret_cast<PyObject*>(request));
  Py_DECREF(hook);
  if (answer == nullptr || !Py_IS_TYPE(answer, row_sequence_type)) {
    discard_error();
    recorder.count_fault();
    Py_XDECREF(answer);
    return nullptr;
  }
  RowSequence*& place = request->sequences[recorder.slot()];
  RowSequence* before = place;
  place = reinterpret_cast<RowSequence*>(answer);
  Py_XDECREF(before);
  return place;
}

bool is_row_request(PyObject* object) noexcept {
  return PyObject_TypeCheck(object, row_request_type) != 0;
}

bool records_model(const Recorder& recorder, uint64_t model) noexcept {
  const RequestHooks& held = request_hooks[recorder.slot()];
  return held.uid == recorder.uid() &&
         std::find(held.models.begin(), held.models.end(), model) != held.models.end();
}

bool add_request_number_types(PyObject* module) {
  PyObject* sequence = PyType_FromSpec(&sequence_spec);
  PyObject* request = PyType_FromSpec(&request_spec);
  if (sequence == nullptr || request == nullptr) return false;
  row_sequence_type = reinterpret_cast<PyTypeObject*>(sequence);
  row_request_type = reinterpret_cast<PyTypeObject*>(request);
  return PyModule_AddObject(module, "RowSequence", Py_NewRef(sequence)) == 0 &&
         PyModule_AddObject(module, "RowRequest", Py_NewRef(request)) == 0 &&
         PyModule_AddFunctions(module, module_methods) == 0;
}

}  // namespace pertoken::bindings
