#include "bindings/step_region.h"

#include <memory>
#include <new>
#include <vector>

#include "bindings/device_calls.h"
#include "bindings/opener.h"
#include "bindings/owned.h"
#include "bindings/request_numbers.h"
#include "bindings/sampled_forward.h"
#include "bindings/step_inputs.h"
#include "bindings/step_rows.h"

namespace pertoken::bindings {

namespace {

struct StepOpener {
  Opener base;          // first, so that opener_enter and opener_exit work on it
  StepRows* rows;       // null where the user says only how many
  bool awaits_commits;  // they are told by commit(), not by the rows
  uint64_t model;       // whose step it is, an identity; 0: that of whichever runs inside
  // How the last entry ended, for what is told of it later. 0 while it has not.
  uint64_t end_ticks;
  struct {
    uint64_t uid;
    uint32_t step;
  } ended[kMaxRecorders];
  std::vector<uint32_t>* committed;  // by row, told before the end; null when it was not
  std::vector<KeptLogits>* logits;   // until it is told what was chosen; null where none are read
};

const StepOpener& step_opener(const Scope* scope) {
  return *reinterpret_cast<const StepOpener*>(scope->owner);
}

// Commits of the rows of a step that has ended, to the recorders that have it.
void push_row_commits(const StepOpener& opener, const std::vector<uint32_t>& committed) {
  for_each_active([&](int slot, Recorder& recorder) {
    if (opener.ended[slot].uid != recorder.uid()) return;
    ThreadBuffer* buffer = recorder.buffer();
    if (buffer == nullptr) return;
    opener.rows->push_commits(recorder, *buffer, opener.ended[slot].step, opener.end_ticks,
                              committed);
  });
}

// What is known of the rows' tokens at the end of a step: what was told meanwhile, else what the
// rows themselves say. A step that raised has committed nothing.
void end_rows(const Scope* scope, uint64_t end_ticks, bool failed) {
  auto& opener = *reinterpret_cast<StepOpener*>(scope->owner);
  opener.end_ticks = end_ticks;
  for (int slot = 0; slot < kMaxRecorders; ++slot) {
    opener.ended[slot] = {scope->entries[slot].uid, scope->entries[slot].step};
  }
  try {
    if (failed) {
      push_row_commits(opener, std::vector<uint32_t>(opener.rows->size(), 0));
    } else if (opener.committed != nullptr) {
      push_row_commits(opener, *opener.committed);
    } else if (!opener.awaits_commits) {
      push_row_commits(opener, {});
    }
  } catch (const std::bad_alloc&) {
    for_each_active([](int, Recorder& recorder) { recorder.count_fault(); });
  }
}

// Positions that a step of told rows feeds to the model: those of its forward, where one runs.
uint32_t positions_of(const StepLengths& lengths, const StepRows& rows) {
  if (lengths.rows == kNone32 || lengths.query_len == kNone32) return rows.query_len();
  const uint64_t positions = uint64_t{lengths.rows} * lengths.query_len;
  return positions < kNone32 ? static_cast<uint32_t>(positions) : kNone32;
}

int step_init(PyObject* self, PyObject* args, PyObject*) {
  int kind = 0;
  long long rows = -1;
  long long tokens = -1;
  PyObject* told = nullptr;
  PyObject* requests = nullptr;
  unsigned long long model = 0;
  int awaits_commits = 0;
  if (!PyArg_ParseTuple(args, "iLL|OO!Kp:StepRegion", &kind, &rows, &tokens, &told, &PyDict_Type,
                        &requests, &model, &awaits_commits)) {
    return -1;
  }
  auto* opener = reinterpret_cast<StepOpener*>(self);
  opener->base.kind = ScopeKind::kStep;
  opener->base.step_kind = static_cast<StepKind>(kind);
  opener->base.step_rows = rows < 0 ? kNone32 : static_cast<uint32_t>(rows);
  opener->base.tokens_committed = tokens < 0 ? kNone32 : static_cast<uint32_t>(tokens);
  opener->model = model;
  opener->awaits_commits = awaits_commits != 0;
  if (told == nullptr) return 0;
  try {
    auto read = std::make_unique<StepRows>();
    if (!read->read(told, requests)) return -1;
    delete opener->rows;
    opener->rows = read.release();
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    return -1;
  }
  opener->base.step_kind = opener->rows->kind();
  opener->base.step_rows = opener->rows->size();
  return 0;
}

void step_dealloc(PyObject* self) {
  auto* opener = reinterpret_cast<StepOpener*>(self);
  delete opener->rows;
  delete opener->committed;
  delete opener->logits;
  PyTypeObject* type = Py_TYPE(self);
  type->tp_free(self);
  Py_DECREF(type);
}

// One list of ids a row; what is none is unknown. Throws std::bad_alloc.
ChosenTokens read_chosen(PyObject* rows) {
  ChosenTokens chosen;
  // Copies: to read one sequence may run code of the user's, which may change another.
  const Owned listed(PySequence_Tuple(rows));
  if (!listed) discard_error();
  if (!listed) return chosen;
  for (Py_ssize_t row = 0; row < PyTuple_GET_SIZE(listed.get()); ++row) {
    std::vector<int64_t>& tokens = chosen.emplace_back();
    const Owned ids(PySequence_Tuple(PyTuple_GET_ITEM(listed.get(), row)));
    for (Py_ssize_t i = 0; ids && i < PyTuple_GET_SIZE(ids.get()); ++i) {
      tokens.push_back(integer_argument(PyTuple_GET_ITEM(ids.get(), i), -1));
    }
    if (!ids) discard_error();
  }
  return chosen;
}

void forget_logits(StepOpener& opener) {
  delete opener.logits;
  opener.logits = nullptr;
}

// Throws std::bad_alloc.
void tell_chosen_rows(StepOpener& opener, PyObject* chosen) {
  if (opener.logits == nullptr) return;
  uint64_t start_ticks = now_ticks();
  const std::vector<KeptLogits> told = std::move(*opener.logits);
  const ChosenTokens tokens = read_chosen(chosen);
  const bool has_ended = opener.end_ticks != 0;
  for (const KeptLogits& kept : told) {
    for_each_active([&](int, Recorder& recorder) {
      if (recorder.uid() != kept.recorder_uid) return;
      ThreadBuffer* buffer = recorder.buffer();
      if (buffer == nullptr) return;
      tell_chosen(recorder, *buffer, kept, tokens);
      const uint64_t end_ticks = now_ticks();
      charge_logits(recorder, *buffer, kept.of, end_ticks - start_ticks,
                    has_ended ? kNone32 : kept.of.step, true);
      start_ticks = end_ticks;
    });
  }
}

// keeps_logits(): whether it is worth saying what was chosen.
PyObject* step_keeps_logits(PyObject* self, PyObject*) {
  const auto* opener = reinterpret_cast<StepOpener*>(self);
  return PyBool_FromLong(opener->logits != nullptr && !opener->logits->empty());
}

// forget_logits(): nobody will say what was chosen, or only much later.
PyObject* step_forget_logits(PyObject* self, PyObject*) {
  forget_logits(*reinterpret_cast<StepOpener*>(self));
  Py_RETURN_NONE;
}

// commit(counts[, chosen]): tokens that the step has committed to each row, told inside it or
// afterwards, and their ids.
PyObject* step_commit(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  if (count < 1 || count > 2) {
    PyErr_SetString(PyExc_TypeError, "commit() takes counts, and what was chosen");
    return nullptr;
  }
  auto* opener = reinterpret_cast<StepOpener*>(self);
  // A copy: to read a count may run code of the user's, which may change the list.
  const Owned items(PySequence_Tuple(args[0]));
  if (!items) return nullptr;
  std::vector<uint32_t> committed;
  bool is_read = true;
  try {
    const Py_ssize_t size = PyTuple_GET_SIZE(items.get());
    committed.resize(static_cast<size_t>(size));
    for (Py_ssize_t i = 0; is_read && i < size; ++i) {
      is_read = read_count(PyTuple_GET_ITEM(items.get(), i), committed[static_cast<size_t>(i)]);
    }
    if (is_read && (opener->rows == nullptr || committed.size() != opener->rows->size())) {
      PyErr_SetString(PyExc_ValueError, "give the tokens of each row");
      is_read = false;
    }
    if (is_read && opener->end_ticks != 0) {
      push_row_commits(*opener, committed);
    } else if (is_read) {
      if (opener->committed == nullptr) opener->committed = new std::vector<uint32_t>;
      *opener->committed = std::move(committed);
    }
    if (is_read && count == 2) tell_chosen_rows(*opener, args[1]);
    forget_logits(*opener);
  } catch (const std::bad_alloc&) {
    PyErr_NoMemory();
    is_read = false;
  }
  if (!is_read) return nullptr;
  Py_RETURN_NONE;
}

PyMethodDef step_methods[] = {
    {"__enter__", opener_enter, METH_NOARGS, nullptr},
    {"__exit__", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(opener_exit)),
     METH_FASTCALL, nullptr},
    {"commit", reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(step_commit)),
     METH_FASTCALL, nullptr},
    {"keeps_logits", step_keeps_logits, METH_NOARGS, nullptr},
    {"forget_logits", step_forget_logits, METH_NOARGS, nullptr},
    {nullptr, nullptr, 0, nullptr}};

}  // namespace

uint32_t begin_step_region(Scope* step, Recorder& recorder, ThreadBuffer& buffer,
                           const StepLengths& lengths, uint32_t generation) {
  ScopeEntry& entry = step->entries[recorder.slot()];
  if (entry.uid != recorder.uid()) {
    entry.uid = recorder.uid();
    entry.step = recorder.next_step();
    entry.forwards = 0;
    entry.level = -1;
    entry.choices = {};
    entry.observed = choose_observation(recorder, buffer, step->step_kind, false, StepPlace::kOwn,
                                        entry.choices);
    const bool has_rows = step->step_rows != kNone32;
    const uint32_t rows = has_rows ? step->step_rows : lengths.rows;
    const StepRows* told = step_opener(step).rows;
    const uint32_t detail = static_cast<uint32_t>(step->step_kind) | kStepDeclared |
                            (has_rows ? kStepRowsDeclared : 0) |
                            (told != nullptr ? kStepHasRows : 0) |
                            (samples_spans(recorder) ? kStepSampled : 0);
    const uint32_t query_len = told == nullptr ? lengths.query_len : positions_of(lengths, *told);
    buffer.push({step->start_ticks, uint64_t{rows} << 32 | query_len,
                 make_tag(RecordType::kStepBegin, detail), generation,
                 told == nullptr ? lengths.past : kNone32, entry.step});
    if (told != nullptr) told->push(recorder, buffer, entry.step, generation);
  }
  ++entry.forwards;
  return entry.step;
}

uint32_t begin_replayed_step(Scope* step, Recorder& recorder, ThreadBuffer& buffer) {
  const StepOpener& opener = step_opener(step);
  if (opener.model != 0 && !records_model(recorder, opener.model)) return kNone32;
  Scope* request = step->nearest_open(&Scope::request);
  const uint32_t generation = request == nullptr ? kNone32 : request_generation(request, recorder);
  return begin_step_region(step, recorder, buffer, {}, generation);
}

void place_told_rows(const Scope* step, ObservedStep& observed, std::vector<ValidRun>& runs) {
  const StepRows* told = step_opener(step).rows;
  if (told == nullptr || observed.batch_rows == told->size()) return;
  observed.rows = -1;
  if (observed.batch_rows != 1 || !told->packed_runs(observed.positions, runs)) return;
  observed.rows = told->size();
  observed.valid = &runs;
}

bool has_told_rows(const Scope* step) noexcept { return step_opener(step).rows != nullptr; }

bool awaits_commit(const Scope* step) noexcept { return step_opener(step).awaits_commits; }

void keep_until_commit(const Scope* step, KeptLogits&& logits) {
  auto& opener = *reinterpret_cast<StepOpener*>(step->owner);
  if (opener.logits == nullptr) opener.logits = new std::vector<KeptLogits>;
  // Of the same step entered once more.
  std::erase_if(*opener.logits, [&](const KeptLogits& before) {
    return before.recorder_uid == logits.recorder_uid;
  });
  opener.logits->push_back(std::move(logits));
}

void end_step_region(Scope* scope, bool failed) {
  const uint64_t end_ticks = now_ticks();
  const StepOpener& opener = step_opener(scope);
  bool begun = false;
  for_each_active([&](int slot, Recorder& recorder) {
    begun = begun || scope->entries[slot].uid == recorder.uid();
  });
  for_each_active([&](int slot, Recorder& recorder) {
    ThreadBuffer* buffer = recorder.buffer();
    if (buffer == nullptr) return;
    Scope* request = scope->nearest_open(&Scope::request);
    const Owned held_request(Py_XNewRef(reinterpret_cast<PyObject*>(request)));
    // No recorded model ran inside: the region itself is all there is to this step.
    if (!begun && (opener.model == 0 || records_model(recorder, opener.model))) {
      const uint32_t generation =
          request == nullptr ? kNone32 : request_generation(request, recorder);
      begin_step_region(scope, recorder, *buffer, {}, generation);
    }
    const ScopeEntry& entry = scope->entries[slot];
    if (entry.uid != recorder.uid()) return;
    end_on_device(*scope, slot, recorder, {kNoSite, scope->seq, 0, entry.step, true});
    const uint32_t flags = (failed ? kStepFailed : 0) | (entry.forwards > 1 ? kStepSeveral : 0);
    charge_observation(recorder, *buffer, scope->step_kind, entry.observed);
    const uint64_t choices = entry.choices.bits();
    const StepCost cost{entry.observed.ticks, buffer->take_root_ticks(scope->step_kind)};
    buffer->push({end_ticks, cost.bits(), make_tag(RecordType::kStepEnd, flags),
                  static_cast<uint32_t>(choices), static_cast<uint32_t>(choices >> 32),
                  entry.step});
    if (scope->tokens_committed == kNone32) return;
    // It was to commit them at its end, which a step that failed has not come to.
    const uint32_t committed = failed ? 0 : scope->tokens_committed;
    uint64_t before = 0;
    if (request != nullptr) {
      before = request->entries[slot].tokens;
      request->entries[slot].tokens += committed;
    }
    buffer->push(
        {before, committed, make_tag(RecordType::kCommit, kCommitTotal), 0, 0, entry.step});
  });
  if (opener.rows != nullptr) end_rows(scope, end_ticks, failed);
}

bool add_step_region_type(PyObject* module) {
  return add_opener(module, "pertoken._native.StepRegion", "StepRegion", sizeof(StepOpener),
                    step_init, step_dealloc, step_methods);
}

}  // namespace pertoken::bindings
