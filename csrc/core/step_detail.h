// What is recorded inside a step, besides the step itself. Decided once a step, by the root's
// wrapper, before the forward; it stands in the thread's buffer for as long as that runs, where
// every wrapper inside looks it up.
#pragma once

#include <cstdint>

namespace pertoken {

// Bits of ThreadBuffer::open_detail. 0 outside steps.
inline constexpr uint32_t kDetailLayers = 1u << 0;  // spans of the layers
inline constexpr uint32_t kDetailAll = 1u << 1;     // spans of all wrapped modules
inline constexpr uint32_t kDetailSpans = kDetailLayers | kDetailAll;
inline constexpr uint32_t kDetailActivations = 1u << 2;  // what observed sites put out
inline constexpr uint32_t kDetailLogits = 1u << 3;       // what the logits say of the tokens

// Spans that a sampled step leaves out stand as their own bits, so much higher: outside steps the
// word is 0, and modules are recorded.
inline constexpr uint32_t kLeftOutShift = 16;

constexpr uint32_t left_out(uint32_t span_detail) noexcept { return span_detail << kLeftOutShift; }

}  // namespace pertoken
