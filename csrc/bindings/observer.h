// Counts what observed sites put out, on the model's threads, in the steps that are observed: under
// the GIL, which is given up while a large tensor is read. One a recording. Observing may take as
// long as reading the tensor, or, where it lies on a GPU, as launching a kernel; it never raises,
// and changes nothing of it.
#pragma once

#include <Python.h>

#include <cstdint>
#include <memory>

#include "bindings/owned.h"
#include "bindings/pybind_names.h"
#include "core/recorder.h"
#include "core/tensor_view.h"
#include "cuda/gpu_observer.h"

namespace pertoken::bindings {

class Observer {
 public:
  // `read_elsewhere(value)` gives a TensorMemory, or None where it has counted why not.
  // `current_stream(device)` gives the handle of torch's current stream on a GPU; None where this
  // torch cannot tell.
  // `skip(text)` counts what is not observed. `choose(output)` gives what is looked at of an
  // output; None: the first floating-point tensor. `by_row`: each row of the batch is an
  // observation of its own.
  Observer(std::shared_ptr<Recorder> recorder, pybind11::object read_elsewhere,
           pybind11::object current_stream, pybind11::object skip, pybind11::object choose,
           bool by_row);
  ~Observer();
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

  // Called by the wrapper of a site when its module has returned, in an observed step, or in any
  // while torch captures a graph.
  void observe_output(ThreadBuffer& buffer, uint32_t site, PyObject* output);
  // A value that the user names; in an observed step, or at the same rate outside of steps.
  void observe_value(uint32_t site, PyObject* value);
  // Round the replay of a graph, on the current stream of its GPU: whether it is observed, which is
  // chosen as for a value by hand. `graph` as end_capture() gave it; what it returns goes to the
  // other one.
  cuda::GpuPlace begin_replay(ThreadBuffer& buffer, uint64_t graph);
  void end_replay(const cuda::GpuPlace& place, uint64_t graph, bool is_launched);
  // The graph whose capture on the current stream of a GPU is about to end; 0 where nothing in it
  // is observed.
  uint64_t end_capture();
  // Of that graph, where it is not 0: see cuda::GraphSwitch.
  void begin_launch(uint64_t graph) noexcept;
  void end_launch(uint64_t graph) noexcept;
  void hold_executable(uint64_t graph, uintptr_t executable);
  void release_executable(uint64_t graph, bool is_there);
  // Sets a GPU up before the first tensor on it; what is wrong is counted when one comes.
  void prepare(int device);

 private:
  struct Calls;

  ObservedStep* step_outside_modules(ThreadBuffer& buffer, uint32_t& number, ObservedStep& outside,
                                     Owned& scope);
  void observe(const ObservedStep& step, uint32_t number, uint32_t site, PyObject* value);
  void count(const ObservedStep& step, uint32_t number, uint32_t site,
             const TensorView& view) noexcept;
  void count_on_gpu(const ObservedStep& step, uint32_t number, uint32_t site,
                    const TensorView& view, const cuda::GpuPlace& place);
  bool current_stream(cuda::GpuPlace& place);
  cuda::GpuObserver* gpus(std::string& reason);
  void skip(const char* reason);

  const std::shared_ptr<Recorder> recorder_;
  const std::unique_ptr<const Calls> calls_;
  const bool by_row_;
  std::shared_ptr<cuda::GpuObserver> gpus_;  // from the first tensor on a GPU on
};

// Null with TypeError set if it is not one.
Observer* observer_of(PyObject* object);

}  // namespace pertoken::bindings
