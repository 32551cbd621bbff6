// Reads logits that lie on GPUs for a recording: by kernels on torch's current stream, whose
// results the collector takes. On the model's thread, under the GIL; waits for nothing.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bindings/logit_rows.h"
#include "core/recorder.h"
#include "core/tensor_view.h"
#include "cuda/gpu_logits.h"

namespace pertoken::bindings {

// Of one step: what was read, and the tokens that are to be told of.
struct GpuLogitStep {
  cuda::KeptLogitRows kept;
  std::vector<uint64_t> addresses;      // of the rows that are to be read
  std::vector<cuda::ToldToken> tokens;  // of one call of tell()
};

class GpuLogitReader {
 public:
  // `current_stream` as of Observer; a reference of the owner's.
  GpuLogitReader(Recorder& recorder, PyObject* current_stream)
      : recorder_(recorder), current_stream_(current_stream) {}

  // Sets a GPU up before the first logits on it; what is wrong is said when some come.
  void prepare(int device);
  // The stream of a tensor of torch's there.
  bool find_stream(cuda::GpuPlace& place, std::string& reason);

  // Reads `step.addresses`, rows of `view`, which holds what is told with each of `places` a row.
  // False, counted or with a reason for people, where nothing is read. Throws std::bad_alloc.
  bool read(const TensorView& view, const cuda::GpuPlace& place, int64_t places,
            const cuda::DeviceTokens& drafts, bool copied, GpuLogitStep& step, std::string& reason);
  // Tells of `step.tokens`; likewise.
  bool tell(const GpuLogitStep& step, const LogitStep& of, const cuda::DeviceTokens& fed,
            std::string& reason);

 private:
  cuda::GpuLogits* gpus(std::string& reason);

  Recorder& recorder_;
  PyObject* const current_stream_;
  std::shared_ptr<cuda::GpuLogits> gpus_;  // from the first logits on a GPU on
};

inline constexpr cuda::DeviceTokens kNoTokens{0, 0, 0, 0};

// A token's id as a kernel takes it; what cannot be one is unknown.
int32_t told_token(int64_t token) noexcept;

// Where ids (rows, columns), or (columns,) of one row, lie on that GPU, from column `first` on, so
// many. kNoTokens for what lies elsewhere, is of another form or is no integers.
cuda::DeviceTokens tokens_on_gpu(PyObject* ids, int device, int64_t rows, int64_t first,
                                 int64_t columns);

}  // namespace pertoken::bindings
