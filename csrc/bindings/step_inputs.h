// Describes a step from the arguments of the root's forward: shapes, host integers and the
// identity of the cache only. No tensor's value is read, except that of a padding mask which
// already lies in host memory, and of ids that do, where logits are read. Under the GIL, on the
// model's thread. Never leaves an exception set.
#pragma once

#include <Python.h>

#include <cstdint>
#include <vector>

#include "bindings/forward_signature.h"
#include "core/observed_step.h"

namespace pertoken::bindings {

// Drops what an attribute or a method of an argument raised. An interrupt or an exit that hit
// meanwhile (anything but an Exception) is the user's: it is raised again in the user's own code.
void discard_error();

struct InputShape {
  int64_t rows = -1;
  int64_t query_len = -1;
};

// Of ids (rows, length) or (length,), of embeddings (rows, length, width), else of the first
// dimension of anything that has a shape. `failed` is set when an attribute raised.
InputShape input_shape(const ForwardSignature& signature, PyObject* args, PyObject* kwargs,
                       bool& failed);

// The sizes of the first `limit` dimensions of a tensor; returns how many it has, -1 when it has no
// shape.
Py_ssize_t read_shape(PyObject* tensor, int64_t* sizes, Py_ssize_t limit);

// A host integer argument, or `otherwise`.
int64_t integer_argument(PyObject* value, int64_t otherwise);

// The same, or the value of a tensor of one integer that lies in host memory.
int64_t host_integer(PyObject* value, int64_t otherwise);

// Integers (rows, columns), or (columns,) of one row, from column `first` on, so many or with -1
// all that are left; row by row. False for what lies elsewhere, is of another form or is no
// integers.
bool read_tokens(PyObject* ids, int64_t rows, int64_t first, int64_t columns,
                 std::vector<int64_t>& tokens);

// What a padding mask leaves valid of one row.
struct RowTokens {
  uint32_t context;  // before the step, kNone32 unknown
  uint32_t query;    // of those fed
};

// Reads a mask in host memory: (rows, past + query) of ones, or (rows, heads, query, keys) as
// attention takes it. False when it is not of that form, or lies elsewhere.
bool valid_tokens(PyObject* mask, int64_t rows, int64_t past, int64_t query_len,
                  std::vector<RowTokens>& valid);

// Which positions of the step it leaves valid; false also when it leaves all of them. Only of the
// form (rows, past + query).
bool valid_runs(PyObject* mask, int64_t rows, int64_t past, int64_t query_len,
                std::vector<ValidRun>& runs);

}  // namespace pertoken::bindings
