#include "bindings/logit_reader.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstring>
#include <exception>
#include <new>
#include <span>

#include "bindings/host_tensor.h"
#include "bindings/step_inputs.h"
#include "bindings/step_region.h"
#include "bindings/without_gil.h"
#include "core/float_value.h"
#include "core/token_logits.h"

namespace pertoken {

using bindings::discard_error;
using bindings::Owned;

namespace {

// Of a structure, the field of this name. A model's output without it has no logits, whatever other
// tensors it has; of a tuple, whose first item may be a loss, the first tensor that can be logits.
PyObject* find_logits(PyObject* output) {
  static PyObject* const name = PyUnicode_InternFromString("logits");
  if (PyDict_Check(output)) {
    PyObject* found = PyDict_GetItemWithError(output, name);
    if (found == nullptr) discard_error();
    return Py_XNewRef(found);
  }
  if (PyTuple_Check(output) || PyList_Check(output)) {
    for (Py_ssize_t i = 0; i < PySequence_Fast_GET_SIZE(output); ++i) {
      const Owned item(Py_NewRef(PySequence_Fast_GET_ITEM(output, i)));
      Owned found(bindings::first_floating_tensor(item.get()));
      int64_t sizes[1] = {};
      if (found && bindings::read_shape(found.get(), sizes, 1) > 1) return Py_NewRef(found.get());
    }
    return nullptr;
  }
  if (PyObject* found = bindings::first_floating_tensor(output)) return found;
  PyObject* found = PyObject_GetAttr(output, name);
  if (found == nullptr) discard_error();
  return found;
}

// As (rows, positions, vocabulary); false for any other form.
bool shape_logits(TensorView& view, int64_t rows) {
  const auto insert = [&](size_t at, int64_t size) {
    for (auto i = static_cast<size_t>(view.dims); i > at; --i) {
      view.shape[i] = view.shape[i - 1];
      view.strides_bytes[i] = view.strides_bytes[i - 1];
    }
    view.shape[at] = size;
    view.strides_bytes[at] = 0;
    ++view.dims;
  };
  if (view.dims == 1 && rows == 1) insert(0, 1);
  if (view.dims == 2) insert(rows == 1 ? 0 : 1, 1);
  return view.dims == 3 && view.shape[0] == rows && view.shape[1] > 0 && view.shape[2] > 0;
}

TensorView logits_at(const TensorView& view, int64_t row, int64_t position) {
  TensorView one;
  one.data = view.data + row * view.strides_bytes[0] + position * view.strides_bytes[1];
  one.format = view.format;
  one.dims = 1;
  one.shape[0] = view.shape[2];
  one.strides_bytes[0] = view.strides_bytes[2];
  return one;
}

}  // namespace

// The recorder that owns it may go in any thread, and when Python is no more.
LogitReader::~LogitReader() {
  if (Py_IsInitialized() == 0) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  Py_CLEAR(read_elsewhere_);
  Py_CLEAR(skip_);
  PyGILState_Release(state);
}

void LogitReader::skip(const char* reason) const {
  const Owned result(PyObject_CallFunction(skip_, "s", reason));
  if (!result) discard_error();
}

bool LogitReader::view(PyObject* output, int64_t rows, TensorView& view, Owned& memory) const {
  const Owned logits(find_logits(output));
  if (!logits) {
    skip("a model's output has no logits");
    return false;
  }
  if (!bindings::view_host_tensor(logits.get(), view)) {
    memory.reset(PyObject_CallOneArg(read_elsewhere_, logits.get()));
    if (!memory) discard_error();
    if (!memory || memory.get() == Py_None) return false;
    int device = -1;
    void* stream = nullptr;
    if (!bindings::view_of_memory(memory.get(), view, device, stream)) {
      skip("logits cannot be read");
      return false;
    }
    if (device >= 0) {
      skip("the tensor is on a GPU, where logits are not read");
      return false;
    }
  }
  if (shape_logits(view, rows)) return true;
  skip("logits are of another form than (rows, positions, vocabulary)");
  return false;
}

namespace bindings {

namespace py = pybind11;

namespace {

void copy_logits(const TensorView& one, std::byte* to) noexcept {
  const auto bytes = static_cast<size_t>(bytes_of(one.format));
  const auto count = static_cast<size_t>(one.shape[0]);
  if (one.strides_bytes[0] == static_cast<int64_t>(bytes)) {
    std::memcpy(to, one.data, count * bytes);
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(to + i * bytes, one.data + static_cast<int64_t>(i) * one.strides_bytes[0], bytes);
  }
}

// Throws std::bad_alloc.
void read_places(const TensorView& view, PendingLogits& pending) {
  const LogitStep& of = pending.of;
  const auto row_bytes = static_cast<size_t>(view.shape[2] * bytes_of(view.format));
  pending.vocabulary = view.shape[2];
  pending.format = view.format;
  pending.stats.clear();
  pending.logits.resize(static_cast<size_t>(of.rows * of.places()) * row_bytes);
  std::byte* to = pending.logits.data();
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int64_t place = 0; place < of.places(); ++place, to += row_bytes) {
      const TensorView one = logits_at(view, row, view.shape[1] - of.places() + place);
      pending.stats.push_back(logit_stats(one));
      copy_logits(one, to);
    }
  }
}

// Without the GIL where there are many; counts what fails.
template <typename Read>
bool read_many(Recorder& recorder, int64_t places, int64_t vocabulary, Read&& read) {
  bool is_read = false;
  const auto guarded = [&]() noexcept {
    try {
      read();
      is_read = true;
    } catch (const std::exception&) {
      recorder.count_fault();
    }
  };
  if (static_cast<uint64_t>(places * vocabulary) < kValuesWithoutGil) {
    guarded();
  } else {
    without_gil(guarded);
  }
  return is_read;
}

void push(ThreadBuffer& buffer, const LogitStep& of, int64_t row, int64_t place,
          const LogitStats& stats, double logprob) noexcept {
  buffer.push(record_of({.step = of.step,
                         .row = static_cast<uint32_t>(row),
                         .place = static_cast<uint32_t>(place),
                         .top1_prob = static_cast<float>(stats.top1_prob),
                         .margin = static_cast<float>(stats.margin),
                         .entropy = static_cast<float>(stats.entropy),
                         .logprob = static_cast<float>(logprob),
                         .weight = of.weight}));
}

double logprob_of(const PendingLogits& pending, size_t at, int64_t token) noexcept {
  if (token < 0 || token >= pending.vocabulary) return LogitStats::kUnknown;
  const auto index = at * static_cast<size_t>(pending.vocabulary) + static_cast<size_t>(token);
  const auto bytes = static_cast<size_t>(bytes_of(pending.format));
  return value_at(pending.logits.data() + index * bytes, pending.format) -
         pending.stats[at].log_sum;
}

// `last` are the tokens that the step committed last, one a row; empty: unknown.
void tell(ThreadBuffer& buffer, const PendingLogits& pending, int64_t committed,
          std::span<const int64_t> last) noexcept {
  const LogitStep& of = pending.of;
  const auto places = static_cast<size_t>(of.places());
  for (size_t row = 0; row < static_cast<size_t>(of.rows); ++row) {
    for (size_t place = 0; place < static_cast<size_t>(committed); ++place) {
      const size_t at = row * places + place;
      int64_t token = -1;
      if (place + 1 == static_cast<size_t>(committed)) {
        if (!last.empty()) token = last[row];
      } else if (!pending.drafts.empty()) {
        token = pending.drafts[row * (places - 1) + place];
      }
      push(buffer, of, static_cast<int64_t>(row), static_cast<int64_t>(place), pending.stats[at],
           logprob_of(pending, at, token));
    }
  }
}

// How many tokens the pending step has committed to each row; 0: none that can be told.
int64_t committed_by(const GenerationState& state, const PendingLogits& pending) noexcept {
  // The forwards of a prefill in chunks commit nothing; where nobody says what is committed, there
  // are no tokens to tell of.
  if (state.commits != pending.commits_before + 1 || state.tokens_unknown) return 0;
  return state.tokens - pending.tokens_before;
}

// `column`: of the last committed token in `ids`.
void tell_pending(GenerationState& state, ThreadBuffer& buffer, PyObject* ids, int64_t column) {
  PendingLogits& pending = *state.logits;
  pending.is_read = false;
  Recorder& recorder = *state.recorder;
  const int64_t committed = committed_by(state, pending);
  if (committed <= 0 || !recorder.active()) return;
  if (committed > pending.of.places()) {
    if (recorder.logit_reader() != nullptr) {
      recorder.logit_reader()->skip("a step committed more tokens than it was known to choose");
    }
    return;
  }
  std::vector<int64_t> last;
  if (ids != nullptr && !read_tokens(ids, pending.of.rows, column, 1, last)) last.clear();
  tell(buffer, pending, committed, last);
}

}  // namespace

bool begin_logits(LogitReader& reader, GenerationState& state, ThreadBuffer& buffer, LogitStep step,
                  PyObject* ids) {
  if (state.logits != nullptr && state.logits->is_read) {
    const LogitStep& of = state.logits->of;
    // Where in the sequence the token stands that was committed last.
    const int64_t at = of.past + of.positions - of.places() + committed_by(state, *state.logits);
    const bool is_followed = of.past >= 0 && step.past >= 0;
    const int64_t column = is_followed ? at - step.past : step.positions == 1 ? 0 : -1;
    tell_pending(state, buffer, column < 0 ? nullptr : ids, column);
  }
  if (state.depth > 0 || step.kind == StepKind::kDraft) return false;
  if (state.has_beams) {
    if (state.steps == 0) reader.skip("a beam search, whose rows are not its sequences");
    return false;
  }
  step.weight = reader.weight(step.kind);
  if (step.weight == 0 || is_being_traced()) return false;
  if (step.rows < 1 || step.places() < 1) {
    reader.skip("the rows of a step are unknown");
    return false;
  }
  try {
    if (state.logits == nullptr) state.logits = new PendingLogits;
    PendingLogits& pending = *state.logits;
    pending.of = step;
    pending.commits_before = state.commits;
    pending.tokens_before = state.tokens;
    pending.drafts.clear();
    const int64_t drafts = step.places() - 1;
    if (drafts > 0 && ids != nullptr &&
        !read_tokens(ids, step.rows, step.positions - drafts, drafts, pending.drafts)) {
      pending.drafts.clear();
    }
  } catch (const std::bad_alloc&) {
    state.recorder->count_fault();
    return false;
  }
  return true;
}

void end_logits(LogitReader& reader, GenerationState& state, PyObject* output) {
  PendingLogits& pending = *state.logits;
  TensorView view;
  Owned memory(nullptr);
  if (output == nullptr || !reader.view(output, pending.of.rows, view, memory)) return;
  if (view.shape[1] < pending.of.places()) {
    reader.skip("logits are of fewer positions than choose a token");
    return;
  }
  pending.is_read = read_many(*state.recorder, pending.of.rows * pending.of.places(), view.shape[2],
                              [&] { read_places(view, pending); });
}

void tell_last_logits(GenerationState& state, ThreadBuffer& buffer, PyObject* returned) {
  if (state.logits == nullptr || !state.logits->is_read) return;
  int64_t sizes[2] = {};
  const bool is_batch = returned != Py_None && read_shape(returned, sizes, 2) == 2;
  tell_pending(state, buffer, is_batch ? returned : nullptr, sizes[1] - 1);
}

std::unique_ptr<DeclaredLogits> begin_declared_logits(LogitReader& reader, const Scope* region,
                                                      const LogitStep& step, PyObject* mask,
                                                      PyObject* keep) {
  if (region->step_kind == StepKind::kDraft) return nullptr;
  const float weight = reader.weight(region->step_kind);
  if (weight == 0 || is_being_traced()) return nullptr;
  try {
    auto declared = std::make_unique<DeclaredLogits>();
    declared->of = step;
    declared->of.kind = region->step_kind;
    declared->of.weight = weight;
    ObservedStep& rows = declared->rows;
    rows.rows = rows.batch_rows = step.rows;
    rows.positions = step.positions;
    if (mask != nullptr && step.rows > 0 &&
        valid_runs(mask, step.rows, step.past, step.positions, declared->runs)) {
      rows.valid = &declared->runs;
    }
    place_told_rows(region, rows, declared->runs);
    if (keep != nullptr && !PyLong_Check(keep)) read_tokens(keep, 1, 0, -1, declared->kept);
    const bool fits = region->step_rows == kNone32 || rows.rows == int64_t{region->step_rows};
    if (rows.rows > 0 && fits && step.positions > 0) return declared;
    reader.skip("the rows of a declared step are not those of its forward");
  } catch (const std::bad_alloc&) {
    reader.skip("no memory");
  }
  return nullptr;
}

namespace {

// Where the logits of a position that was fed stand among those that were put out; -1 nowhere.
int64_t kept_position(const DeclaredLogits& declared, int64_t positions_out, int64_t position) {
  if (declared.kept.empty()) {
    const bool is_packed = declared.rows.rows != declared.rows.batch_rows;
    const int64_t left_out = declared.rows.positions - positions_out;
    return is_packed && left_out != 0 ? -1 : position - left_out;  // the last ones are kept
  }
  if (static_cast<int64_t>(declared.kept.size()) != positions_out) return -1;
  const auto found = std::find(declared.kept.begin(), declared.kept.end(), position);
  return found == declared.kept.end() ? -1 : found - declared.kept.begin();
}

}  // namespace

void end_declared_logits(LogitReader& reader, const DeclaredLogits& declared, Recorder& recorder,
                         ThreadBuffer& buffer, PyObject* output) {
  TensorView view;
  Owned memory(nullptr);
  if (output == nullptr || !reader.view(output, declared.rows.batch_rows, view, memory)) return;
  const LogitStep& of = declared.of;
  bool has_told = false;
  // Of a run of positions, the last chooses a token; where candidates are verified, each does.
  const auto read_run = [&](const ValidRun& run) {
    const int64_t places = of.kind != StepKind::kVerify ? 1
                           : of.keep > 1                ? of.keep
                                                        : run.end - run.begin;
    for (int64_t place = 0; place < places; ++place) {
      const int64_t position = kept_position(declared, view.shape[1], run.end - places + place);
      if (position < 0 || position >= view.shape[1]) continue;
      has_told = true;
      push(buffer, of, run.row, place, logit_stats(logits_at(view, run.batch_row, position)),
           LogitStats::kUnknown);
    }
  };
  const bool is_read = read_many(recorder, declared.rows.rows, view.shape[2], [&] {
    if (declared.rows.valid == nullptr) {
      for (int64_t row = 0; row < declared.rows.rows; ++row) {
        read_run({row, row, 0, declared.rows.positions});
      }
      return;
    }
    const std::vector<ValidRun>& runs = *declared.rows.valid;
    for (size_t i = 0; i < runs.size(); ++i) {
      // What a mask leaves valid may be several runs, of which the last one ends the row.
      if (i + 1 == runs.size() || runs[i + 1].row != runs[i].row) read_run(runs[i]);
    }
  });
  if (is_read && !has_told) reader.skip("the positions of the rows are not known");
}

void bind_logit_reader(py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class.def(
      "read_logits",
      [](Recorder& recorder, uint32_t every, uint64_t seed, const py::function& read_elsewhere,
         const py::function& skip) {
        recorder.set_logit_reader(
            std::make_shared<LogitReader>(every, seed, read_elsewhere.ptr(), skip.ptr()));
      },
      py::arg("every"), py::arg("seed"), py::arg("read_elsewhere"), py::arg("skip"));
}

}  // namespace bindings
}  // namespace pertoken
