#include "bindings/logit_rows.h"

#include <cstring>

#include "core/float_value.h"
#include "core/token_logits.h"

namespace pertoken::bindings {

TensorView logits_at(const TensorView& view, int64_t row, int64_t position) noexcept {
  TensorView one;
  one.data = view.data + row * view.strides_bytes[0] + position * view.strides_bytes[1];
  one.format = view.format;
  one.dims = 1;
  one.shape[0] = view.shape[2];
  one.strides_bytes[0] = view.strides_bytes[2];
  return one;
}

void LogitCopies::start(const TensorView& view, int64_t rows) {
  vocabulary_ = view.shape[2];
  format_ = view.format;
  bytes_.clear();
  bytes_.reserve(static_cast<size_t>(rows * vocabulary_ * bytes_of(format_)));
}

void LogitCopies::add(const TensorView& one) {
  const auto bytes = static_cast<size_t>(bytes_of(format_));
  const auto count = static_cast<size_t>(vocabulary_);
  const size_t at = bytes_.size();
  bytes_.resize(at + count * bytes);
  std::byte* const to = bytes_.data() + at;
  if (one.strides_bytes[0] == static_cast<int64_t>(bytes)) {
    std::memcpy(to, one.data, count * bytes);
    return;
  }
  for (size_t i = 0; i < count; ++i) {
    std::memcpy(to + i * bytes, one.data + static_cast<int64_t>(i) * one.strides_bytes[0], bytes);
  }
}

double LogitCopies::logprob(size_t at, int64_t token, const LogitStats& stats) const noexcept {
  if (token < 0 || token >= vocabulary_) return LogitStats::kUnknown;
  const auto index = at * static_cast<size_t>(vocabulary_) + static_cast<size_t>(token);
  const auto bytes = static_cast<size_t>(bytes_of(format_));
  return value_at(bytes_.data() + index * bytes, format_) - stats.log_sum;
}

void push_logits(ThreadBuffer& buffer, const LogitStep& of, int64_t row, int64_t place,
                 const LogitStats& stats, double logprob) noexcept {
  buffer.push(record_of({.step = of.step,
                         .row = static_cast<uint32_t>(row),
                         .place = static_cast<uint32_t>(place),
                         .top1_prob = static_cast<float>(stats.top1_prob),
                         .margin = static_cast<float>(stats.margin),
                         .entropy = static_cast<float>(stats.entropy),
                         .logprob = static_cast<float>(logprob),
                         .weight = of.weight}));
}

}  // namespace pertoken::bindings
