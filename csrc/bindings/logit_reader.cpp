#include "bindings/logit_reader.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <new>
#include <span>

#include "bindings/host_tensor.h"
#include "bindings/sampled_forward.h"
#include "bindings/step_inputs.h"
#include "bindings/tensor_reading.h"

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

}  // namespace

// The recorder that owns it may go in any thread, and when Python is no more.
LogitReader::~LogitReader() {
  if (Py_IsInitialized() == 0) return;
  const PyGILState_STATE state = PyGILState_Ensure();
  Py_CLEAR(read_elsewhere_);
  Py_CLEAR(current_stream_);
  Py_CLEAR(skip_);
  PyGILState_Release(state);
}

float LogitReader::choose(ThreadBuffer& buffer, StepKind kind, bool is_first,
                          PackedChoices& choices) noexcept {
  if (Sampler* sampler = recorder_.sampler()) {
    return bindings::sampled_logits(*sampler, buffer, kind, is_first, choices);
  }
  return static_cast<float>(rate_.next(static_cast<uint8_t>(kind)));
}

void LogitReader::skip(const char* reason) const {
  const Owned result(PyObject_CallFunction(skip_, "s", reason));
  if (!result) discard_error();
}

bool LogitReader::view(PyObject* output, int64_t rows, TensorView& view, Owned& memory,
                       cuda::GpuPlace& place) {
  const Owned logits(find_logits(output));
  if (!logits) {
    skip("a model's output has no logits");
    return false;
  }
  const auto find_stream = [this](cuda::GpuPlace& on) {
    std::string reason;
    const bool is_found = gpus_.find_stream(on, reason);
    skip_if(reason);
    return is_found;
  };
  using bindings::Reading;
  const Reading reading =
      bindings::find_values(logits.get(), read_elsewhere_, find_stream, view, place, memory);
  if (reading == Reading::kUnknown) skip("logits cannot be read");
  if (reading != Reading::kReady) return false;
  if (shape_logits(view, rows)) return true;
  skip("logits are of another form than (rows, positions, vocabulary)");
  return false;
}

namespace bindings {

namespace py = pybind11;

namespace {

// Throws std::bad_alloc.
void read_places(const TensorView& view, PendingLogits& pending) {
  const LogitStep& of = pending.of;
  pending.stats.clear();
  pending.logits.start(view, of.rows * of.places());
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int64_t place = 0; place < of.places(); ++place) {
      const TensorView one = logits_at(view, row, view.shape[1] - of.places() + place);
      pending.stats.push_back(logit_stats(one));
      pending.logits.add(one);
    }
  }
}

// Throws std::bad_alloc.
bool read_on_gpu(LogitReader& reader, PendingLogits& pending, const TensorView& view,
                 const cuda::GpuPlace& place) {
  const LogitStep& of = pending.of;
  const int64_t first = view.shape[1] - of.places();
  if (pending.gpu == nullptr) pending.gpu = std::make_unique<GpuLogitStep>();
  GpuLogitStep& gpu = *pending.gpu;
  gpu.addresses.clear();
  for (int64_t row = 0; row < of.rows; ++row) {
    for (int64_t at = 0; at < of.places(); ++at) {
      gpu.addresses.push_back(reinterpret_cast<uintptr_t>(logits_at(view, row, first + at).data));
    }
  }
  cuda::DeviceTokens drafts = kNoTokens;
  if (pending.draft_ids) {
    const int64_t count = of.places() - 1;
    drafts =
        tokens_on_gpu(pending.draft_ids.get(), place.device, of.rows, of.positions - count, count);
  }
  std::string reason;
  const bool is_read =
      reader.gpus().read(view, place, of.places(), drafts, /*copied=*/true, gpu, reason);
  reader.skip_if(reason);
  return is_read;
}

// Which of the places that were read have chosen the tokens that the step committed to each row.
struct ToldPlaces {
  int64_t first;
  int64_t count;
};

// `column` of `ids`, or null, is what the step committed last; the same as `last` where that could
// be read. Throws std::bad_alloc.
void tell_on_gpu(LogitReader& reader, PendingLogits& pending, const ToldPlaces& told,
                 std::span<const int64_t> last, PyObject* ids, int64_t column) {
  const LogitStep& of = pending.of;
  const auto places = static_cast<size_t>(of.places());
  GpuLogitStep& gpu = *pending.gpu;
  const cuda::DeviceTokens fed = ids == nullptr || !last.empty()
                                     ? kNoTokens
                                     : tokens_on_gpu(ids, gpu.kept.device(), of.rows, column, 1);
  gpu.tokens.clear();
  for (size_t row = 0; row < static_cast<size_t>(of.rows); ++row) {
    for (size_t place = 0; place < static_cast<size_t>(told.count); ++place) {
      const size_t at = row * places + static_cast<size_t>(told.first) + place;
      int32_t token = cuda::kDraftToken;
      if (place + 1 == static_cast<size_t>(told.count)) {
        token = last.empty() ? cuda::kFedToken : told_token(last[row]);
      } else if (!pending.drafts.empty()) {
        token = told_token(pending.drafts[row * (places - 1) + place]);
      }
      gpu.tokens.push_back({static_cast<uint32_t>(at), static_cast<uint32_t>(row),
                            static_cast<uint32_t>(place), token});
    }
  }
  std::string reason;
  reader.gpus().tell(gpu, of, fed, reason);
  reader.skip_if(reason);
}

// `last` are the tokens that the step committed last, one a row; empty: unknown.
void tell(ThreadBuffer& buffer, const PendingLogits& pending, const ToldPlaces& told,
          std::span<const int64_t> last) noexcept {
  const LogitStep& of = pending.of;
  const auto places = static_cast<size_t>(of.places());
  for (size_t row = 0; row < static_cast<size_t>(of.rows); ++row) {
    for (size_t place = 0; place < static_cast<size_t>(told.count); ++place) {
      const size_t at = row * places + static_cast<size_t>(told.first) + place;
      int64_t token = -1;
      if (place + 1 == static_cast<size_t>(told.count)) {
        if (!last.empty()) token = last[row];
      } else if (!pending.drafts.empty()) {
        token = pending.drafts[row * (places - 1) + place];
      }
      push_logits(buffer, of, static_cast<int64_t>(row), static_cast<int64_t>(place),
                  pending.stats[at], pending.logits.logprob(at, token, pending.stats[at]));
    }
  }
}

// Of what the pending step has committed; none where that cannot be told.
ToldPlaces told_by(const GenerationState& state, const PendingLogits& pending) noexcept {
  // The forwards of a prefill in chunks commit nothing; where nobody says what is committed, there
  // are no tokens to tell of.
  if (state.commits != pending.commits_before + 1 || state.tokens_unknown) return {0, 0};
  const int64_t committed = state.tokens - pending.tokens_before;
  // Candidates are verified from the first place on. Where there are none, a user may have more
  // positions kept than the last one, which chooses.
  return {state.says_tokens ? 0 : pending.of.places() - committed, committed};
}

// `column`: of the last committed token in `ids`.
void tell_pending(GenerationState& state, ThreadBuffer& buffer, PyObject* ids, int64_t column) {
  PendingLogits& pending = *state.logits;
  Recorder& recorder = *state.recorder;
  const ToldPlaces told = told_by(state, pending);
  if (told.count <= 0 || !recorder.active()) return;
  if (told.count > pending.of.places()) {
    if (recorder.logit_reader() != nullptr) {
      recorder.logit_reader()->skip("a step committed more tokens than it was known to choose");
    }
    return;
  }
  const uint64_t start_ticks = now_ticks();
  std::vector<int64_t> last;
  if (ids != nullptr && !read_tokens(ids, pending.of.rows, column, 1, last)) last.clear();
  if (pending.is_on_gpu) {
    try {
      tell_on_gpu(*recorder.logit_reader(), pending, told, last, ids, column);
    } catch (const std::bad_alloc&) {
      recorder.count_fault();
    }
  } else {
    tell(buffer, pending, told, last);
  }
  charge_logits(recorder, buffer, pending.of, now_ticks() - start_ticks, kNone32, true);
}

// Whether there is anything to tell, which from now on is this caller's alone to do.
bool take_to_tell(PendingLogits* pending) noexcept {
  if (pending == nullptr || pending->is_busy || !pending->is_read) return false;
  pending->is_read = false;
  pending->is_busy = true;
  return true;
}

}  // namespace

bool begin_logits(LogitReader& reader, GenerationState& state, ThreadBuffer& buffer, LogitStep step,
                  PyObject* ids, bool is_first, PackedChoices& choices) {
  if (take_to_tell(state.logits)) {
    const LogitStep& of = state.logits->of;
    // Where in the sequence the token stands that was committed last.
    const ToldPlaces told = told_by(state, *state.logits);
    const int64_t at = of.past + of.positions - of.places() + told.first + told.count;
    const bool is_followed = of.past >= 0 && step.past >= 0;
    const int64_t column = is_followed ? at - step.past : step.positions == 1 ? 0 : -1;
    tell_pending(state, buffer, column < 0 ? nullptr : ids, column);
    state.logits->is_busy = false;
  }
  if (state.depth > 0 || step.kind == StepKind::kDraft) return false;
  if (step.positions > 0) step.keep = std::min(step.keep, step.positions);
  if (state.has_beams) {
    if (state.steps == 0) reader.skip("a beam search, whose rows are not its sequences");
    return false;
  }
  step.weight = reader.choose(buffer, step.kind, is_first, choices);
  if (step.weight == 0 || is_being_traced()) return false;
  if (step.rows < 1 || step.places() < 1) {
    reader.skip("the rows of a step are unknown");
    return false;
  }
  if (state.logits != nullptr && state.logits->is_busy) {
    reader.skip("another step of the same generate() is running");
    return false;
  }
  try {
    if (state.logits == nullptr) state.logits = new PendingLogits;
    PendingLogits& pending = *state.logits;
    pending.is_busy = true;
    const uint64_t start_ticks = now_ticks();
    pending.of = step;
    pending.commits_before = state.commits;
    pending.tokens_before = state.tokens;
    pending.drafts.clear();
    const int64_t drafts = step.places() - 1;
    if (drafts > 0 && ids != nullptr &&
        !read_tokens(ids, step.rows, step.positions - drafts, drafts, pending.drafts)) {
      pending.drafts.clear();
      pending.draft_ids.reset(Py_NewRef(ids));
    }
    pending.read_ticks = now_ticks() - start_ticks;
  } catch (const std::bad_alloc&) {
    state.recorder->count_fault();
    if (state.logits != nullptr) state.logits->is_busy = false;
    return false;
  }
  return true;
}

void end_logits(LogitReader& reader, GenerationState& state, PyObject* output) {
  const uint64_t start_ticks = now_ticks();
  PendingLogits& pending = *state.logits;
  TensorView view;
  Owned memory(nullptr);
  cuda::GpuPlace place{-1, nullptr};
  if (output != nullptr && reader.view(output, pending.of.rows, view, memory, place)) {
    pending.is_on_gpu = place.device >= 0;
    if (view.shape[1] < pending.of.places()) {
      reader.skip("logits are of fewer positions than choose a token");
    } else if (pending.is_on_gpu) {
      pending.is_read =
          guarded_read(*state.recorder, [&] { return read_on_gpu(reader, pending, view, place); });
    } else {
      pending.is_read = read_many(*state.recorder, pending.of.rows * pending.of.places(),
                                  view.shape[2], [&] { read_places(view, pending); });
    }
  }
  pending.draft_ids.reset(nullptr);
  pending.read_ticks += now_ticks() - start_ticks;
}

void charge_read_logits(GenerationState& state, ThreadBuffer& buffer) noexcept {
  PendingLogits& pending = *state.logits;
  pending.is_busy = false;
  charge_logits(*state.recorder, buffer, pending.of, pending.read_ticks, kNone32, false);
}

void tell_last_logits(GenerationState& state, ThreadBuffer& buffer, PyObject* returned) {
  if (!take_to_tell(state.logits)) return;
  int64_t sizes[2] = {};
  const bool is_batch = returned != Py_None && read_shape(returned, sizes, 2) == 2;
  tell_pending(state, buffer, is_batch ? returned : nullptr, sizes[1] - 1);
  state.logits->is_busy = false;
}

void bind_logit_reader(py::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class) {
  recorder_class.def(
      "read_logits",
      [](Recorder& recorder, uint32_t every, uint64_t seed, const py::function& read_elsewhere,
         const py::object& current_stream, const py::function& skip) {
        recorder.set_logit_reader(std::make_shared<LogitReader>(
            recorder, every, seed, read_elsewhere.ptr(), current_stream.ptr(), skip.ptr()));
      },
      py::arg("every"), py::arg("seed"), py::arg("read_elsewhere"), py::arg("current_stream"),
      py::arg("skip"));
  recorder_class.def(
      "prepare_logits",
      [](Recorder& recorder, int device) { recorder.logit_reader()->gpus().prepare(device); },
      py::arg("device"));
}

}  // namespace bindings
}  // namespace pertoken
