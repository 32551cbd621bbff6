// The wrapper in the root's call slot, as the files that share its work see it.
#pragma once

#include <Python.h>

#include <cstdint>

#include "bindings/forward_signature.h"
#include "bindings/last_cache.h"
#include "bindings/span_call.h"

namespace pertoken::bindings {

struct RootCall {
  SpanCall base;  // first, so that span_call_* work on it
  PyObject* generation_var;
  uint64_t only_generate_of;  // steps only in this model's generate() or in none; 0: in any
  bool is_span_when_nested;   // in another root's step; else such a call is not recorded
  LastCache last_cache;       // of the last step outside generate()
  ForwardSignature signature;
};

// The first steps of a generate(): its prefill, and what comes next.
inline constexpr uint32_t kFavouredSteps = 2;

}  // namespace pertoken::bindings
