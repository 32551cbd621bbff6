// Finds the tensor in what a module returned, and where its values lie, without a line of Python
// and without a link to torch. Under the GIL. Never leaves an exception set.
#pragma once

#include <Python.h>

#include <array>
#include <cstddef>
#include <cstdint>

#include "core/tensor_view.h"

namespace pertoken::bindings {

// Below this the reading takes less time than giving up the GIL may cost.
inline constexpr uint64_t kValuesWithoutGil = 32768;

// What torch calls things; told once, when a recording of a model is made. `formats` is a dict from
// dtypes to numbers of FloatFormat, `get_tracing_state` says whether shapes are being traced.
// Keeps references. Until then nothing is a tensor.
void learn_torch(PyObject* tensor_type, PyObject* parameter_type, PyObject* formats,
                 PyObject* strided, PyObject* get_tracing_state);

// Whether torch.jit.trace runs on this thread: what is asked of a tensor then becomes part of the
// traced graph.
bool is_being_traced();

// The first floating-point tensor of an output: itself, or in tuples, lists and mappings, in order.
// A new reference; nullptr when there is none.
PyObject* first_floating_tensor(PyObject* output);

// Whether the values of a plain tensor can be read where it says that they are; fills `view` if so,
// and `device` with CUDA's number of the GPU, or -1 for host memory. False also for what only
// Python knows how to read, or why not.
bool view_tensor(PyObject* tensor, TensorView& view, int& device);

// A plain tensor of few dimensions in host memory, of whatever type.
struct HostItems {
  static constexpr int kMostDims = 4;
  enum Sort : uint8_t { kIntegers, kFloats, kOthers };

  const std::byte* data = nullptr;  // not null
  int64_t bytes = 0;                // of one
  Sort sort = kOthers;
  int dims = 0;
  std::array<int64_t, kMostDims> shape{};
  std::array<int64_t, kMostDims> strides_bytes{};
};

// False for what lies elsewhere, has more dimensions or none, or no memory for all that it says it
// has.
bool view_host_items(PyObject* tensor, HostItems& items);

// The same as view_tensor() of integers of 4 or 8 bytes on a GPU; the view's format says nothing.
bool view_gpu_integers(PyObject* tensor, TensorView& view, int64_t& value_bytes, int& device);

// What is no tensor of that sort as Python found it, a TensorMemory. `device` is -1 in host memory;
// else the values are there behind what was enqueued on `stream`.
bool view_of_memory(PyObject* memory, TensorView& view, int& device, void*& stream);

}  // namespace pertoken::bindings
