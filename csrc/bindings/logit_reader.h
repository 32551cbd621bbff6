// Reads the logits that a root put out, in the steps that are chosen for it, and tells a record a
// token: on the model's thread when the forward has returned, under the GIL, which is given up
// where there are many. It may take as long as reading them, or, where they lie on a GPU, as
// launching a kernel; it never raises, and changes nothing.
//
// Which token was chosen is seen later: in generate(), the next forward is fed it, and what the
// call returns ends with the last one. Until then copies of the rows that choose are kept, no ids,
// where the logits lie; on a GPU, ids that lie there are looked up there.
// A reference instead would keep all positions of a prompt alive for one more step, and say
// something wrong where a sampler works in place.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "bindings/generation_state.h"
#include "bindings/gpu_logit_reader.h"
#include "bindings/logit_rows.h"
#include "bindings/owned.h"
#include "bindings/pybind_names.h"
#include "core/observation_rate.h"
#include "core/recorder.h"
#include "core/tensor_view.h"

namespace pertoken {

// One a recording.
class LogitReader {
 public:
  // `read_elsewhere(tensor)` gives a TensorMemory, or None where it has counted why not;
  // `current_stream(device)` is as of Observer; `skip(text)` counts what is not read. Keeps
  // references, but of the recorder, whose it is.
  LogitReader(Recorder& recorder, uint32_t every, uint64_t seed, PyObject* read_elsewhere,
              PyObject* current_stream, PyObject* skip)
      : recorder_(recorder),
        rate_(every, seed),
        read_elsewhere_(Py_NewRef(read_elsewhere)),
        current_stream_(Py_NewRef(current_stream)),
        skip_(Py_NewRef(skip)),
        gpus_(recorder, current_stream_) {}
  LogitReader(const LogitReader&) = delete;
  LogitReader& operator=(const LogitReader&) = delete;
  ~LogitReader();

  // The weight of a step that begins, 0 where its logits are not read: by the recorder's sampler,
  // which notes it in `choices`, or at the fixed rate. `is_first` of its request, or nearly so.
  float choose(ThreadBuffer& buffer, StepKind kind, bool is_first, PackedChoices& choices) noexcept;
  // The logits in what a root returned, as (rows, positions, vocabulary), and where they lie: the
  // device is -1 in host memory. `memory` holds what the view needs; false, counted, where there
  // are none that can be read.
  bool view(PyObject* output, int64_t rows, TensorView& view, bindings::Owned& memory,
            cuda::GpuPlace& place);
  void skip(const char* reason) const;
  // Where something went wrong on a GPU that is not counted yet.
  void skip_if(const std::string& reason) const {
    if (!reason.empty()) skip(reason.c_str());
  }
  bindings::GpuLogitReader& gpus() noexcept { return gpus_; }

 private:
  Recorder& recorder_;
  ObservationRate rate_;
  PyObject* read_elsewhere_;
  PyObject* current_stream_;
  PyObject* skip_;
  bindings::GpuLogitReader gpus_;
};

namespace bindings {

// Of one step of a generate(), until its tokens are known.
struct PendingLogits {
  LogitStep of;
  uint32_t commits_before = 0;        // of the generation
  uint32_t tokens_before = 0;         // of each row
  std::vector<int64_t> drafts;        // (rows, places - 1): the candidates that it verifies
  Owned draft_ids{nullptr};           // what they are the last columns of, if elsewhere
  std::vector<LogitStats> stats;      // (rows, places)
  LogitCopies logits;                 // (rows, places)
  std::unique_ptr<GpuLogitStep> gpu;  // in the place of these two, where they lie on a GPU
  bool is_on_gpu = false;
  bool is_read = false;  // else only its room is kept, for the next ones
  // Somebody reads or tells it, and may give up the GIL meanwhile: others, who came here by a copy
  // of the context, let it be.
  bool is_busy = false;
  uint64_t read_ticks = 0;  // what reading them has taken
};

// Before a forward of generate(), which is fed `ids`, or null: tells what the forward before has
// chosen. Whether the logits of this one are to be read, which it notes in `choices` where that is
// sampled; `is_first` of its request, or nearly so.
bool begin_logits(LogitReader& reader, GenerationState& state, ThreadBuffer& buffer, LogitStep step,
                  PyObject* ids, bool is_first, PackedChoices& choices);
// After it.
void end_logits(LogitReader& reader, GenerationState& state, PyObject* output);
// After the step's own records; the next one may come from here on.
void charge_read_logits(GenerationState& state, ThreadBuffer& buffer) noexcept;
// When generate() has returned ids; whatever else it returned, the last log-probability stays
// unknown.
void tell_last_logits(GenerationState& state, ThreadBuffer& buffer, PyObject* returned);

// Recorder.read_logits().
void bind_logit_reader(pybind11::class_<Recorder, std::shared_ptr<Recorder>>& recorder_class);

}  // namespace bindings
}  // namespace pertoken
