// What the logits said of one token when it was chosen, and how that is told in a record. Whoever
// reads the logits, on the host or on a device, makes one of these.
#pragma once

#include <bit>
#include <cstdint>
#include <limits>
#include <utility>

#include "core/record.h"

namespace pertoken {

struct TokenLogits {
  static constexpr float kUnknown = std::numeric_limits<float>::quiet_NaN();

  int64_t step;
  uint32_t row;    // as step_rows numbers them
  uint32_t place;  // among the tokens that the step commits to the row, from 0; below 2^24
  float top1_prob;
  float margin;
  float entropy;  // in nats
  float logprob;  // of the token that was chosen, in nats; kUnknown where that is not known
  float weight;   // 1 / the probability that its step's logits were read
};

inline uint64_t two_floats(float high, float low) noexcept {
  return uint64_t{std::bit_cast<uint32_t>(high)} << 32 | std::bit_cast<uint32_t>(low);
}

inline std::pair<float, float> floats_of(uint64_t bits) noexcept {
  return {std::bit_cast<float>(static_cast<uint32_t>(bits >> 32)),
          std::bit_cast<float>(static_cast<uint32_t>(bits))};
}

inline Record record_of(const TokenLogits& token) noexcept {
  return {two_floats(token.top1_prob, token.margin),       two_floats(token.entropy, token.logprob),
          make_tag(RecordType::kTokenLogits, token.place), token.row,
          std::bit_cast<uint32_t>(token.weight),           static_cast<uint32_t>(token.step)};
}

// `step`: that of the record, widened.
inline TokenLogits token_logits_of(const Record& record, int64_t step) noexcept {
  const auto [top1_prob, margin] = floats_of(record.start_ticks);
  const auto [entropy, logprob] = floats_of(record.end_ticks);
  return {step,   record.seq, record.detail(), top1_prob,
          margin, entropy,    logprob,         std::bit_cast<float>(record.parent_seq)};
}

}  // namespace pertoken
