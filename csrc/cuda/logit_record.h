// What is left of the logits on a GPU: for each position that chose a token a row in the device's
// memory, until it is known which token that was, and then a record in pinned memory, in tagged
// words (tagged_words.h).
#pragma once

#include <cstdint>

namespace pertoken::cuda {

// Written by the pass over the logits, read by what tells of tokens, later on the same stream.
struct KeptRow {
  double log_sum;
  float top1_prob;
  float margin;
  float entropy;
  float draft_logprob;  // of the candidate that is verified here; NaN where there is none
  uint64_t copy;        // where a copy of the logits begins, side by side; 0: there is none
};

// The words of a record. Floats stand as their bits.
enum class LogitWord : uint8_t {
  kLaunch,
  kRow,
  kPlace,
  kTop1Prob,
  kMargin,
  kEntropy,
  kLogprob,
  kEnd,
};

inline constexpr uint32_t kLogitRecordWords = static_cast<uint32_t>(LogitWord::kEnd);

}  // namespace pertoken::cuda
