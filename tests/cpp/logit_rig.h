// Logits on GPUs over the fake driver, whose kernels run the logit kernels' own arithmetic; and
// what the reference says of them.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/float_value.h"
#include "core/logit_stats.h"
#include "core/thread_buffer.h"
#include "core/token_logits.h"
#include "cuda/gpu_logits.h"
#include "emulated_logits.h"
#include "tensor_values.h"

namespace pertoken::testing {

using namespace cuda;

inline constexpr double kNsPerTick = 1 / FakeDriver::kTicksPerNs;
inline constexpr std::byte kImage[16] = {};
inline constexpr DeviceTokens kNone{0, 0, 0, 0};
inline constexpr float kInfinity = std::numeric_limits<float>::infinity();

// GpuLogits over the fake driver.
struct LogitRig {
  FakeDriver driver;
  LogitDevices devices;
  std::unique_ptr<GpuLogits> logits;
  ThreadBuffer buffer{1 << 13, 0, kNoThread, "logits"};
  CUstream stream = nullptr;
  KeptLogitRows kept;
  std::string reason;

  explicit LogitRig(int count = 1) : driver(count), devices(*driver.api(), kImage) {
    add_logit_kernels(driver);
    driver.set_current(0);
    stream = new_stream();
    start();
  }
  ~LogitRig() { CHECK_EQ(driver.misuses(), 0U); }

  void start() { logits = std::make_unique<GpuLogits>(devices, &FakeDriver::ticks); }
  CUstream new_stream() {
    CUstream made = nullptr;
    CHECK_EQ(driver.api()->cuStreamCreate(&made, CU_STREAM_NON_BLOCKING), CUDA_SUCCESS);
    return made;
  }
  // One place a row, unless told.
  bool read(const std::vector<TensorView>& rows, bool copied = true, uint32_t places = 1,
            const DeviceTokens& drafts = kNone) {
    std::vector<uint64_t> addresses;
    for (const TensorView& row : rows) {
      addresses.push_back(reinterpret_cast<uintptr_t>(row.data));
    }
    const TensorView& one = rows.front();
    return logits->read({0, stream},
                        {addresses, one.strides_bytes[0], static_cast<uint32_t>(one.shape[0]),
                         one.format, places, drafts},
                        copied, kept, reason);
  }
  bool tell(const std::vector<ToldToken>& tokens, const DeviceTokens& fed = kNone,
            uint32_t step = 3) {
    return logits->tell({0, stream}, kept, step, 2.0F, tokens, fed, reason);
  }
  std::vector<TokenLogits> collect(int64_t after_ns = 1'000'000) {
    driver.advance(after_ns);
    logits->collect(kNsPerTick, buffer);
    std::vector<TokenLogits> told;
    for (auto records = buffer.ring.readable(); !records.empty();
         records = buffer.ring.readable()) {
      for (const Record& record : records) told.push_back(token_logits_of(record, record.step));
      buffer.ring.release(records.size());
    }
    return told;
  }
};

inline uint64_t all(const ObservationLosses& losses) {
  return losses.no_room + losses.in_capture + losses.late + losses.failed + losses.lost;
}

inline void check_close(double actual, double expected) {
  if (std::isnan(expected)) {
    CHECK(std::isnan(actual));
  } else {
    // Infinite where float32 ends.
    CHECK(actual == static_cast<float>(expected) ||
          std::abs(actual - expected) <= 2e-6 * std::max(1.0, std::abs(expected)));
  }
}

inline double logprob_of(const TensorView& logits, int64_t token) {
  return value_at(logits.data + token * logits.strides_bytes[0], logits.format) -
         reference_logit_stats(logits).log_sum;
}

inline void check_told(const TokenLogits& told, const TensorView& logits, int64_t token) {
  const LogitStats expected = reference_logit_stats(logits);
  check_close(told.top1_prob, expected.top1_prob);
  check_close(told.margin, expected.margin);
  check_close(told.entropy, expected.entropy);
  check_close(told.logprob, token < 0 ? LogitStats::kUnknown : logprob_of(logits, token));
}

// Normal values in a format, with what is given among them.
inline std::vector<std::byte> random_logits(FloatFormat format, size_t count, uint64_t seed,
                                            float spread = 4) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  std::vector<std::byte> bytes(count * static_cast<size_t>(bytes_of(format)));
  for (size_t i = 0; i < count; ++i) {
    const auto bits = std::bit_cast<uint32_t>(normal(random));
    if (format == FloatFormat::kFloat32) {
      std::memcpy(&bytes[4 * i], &bits, 4);
      continue;
    }
    // Of a float16 some bits that are no special value: about 2^-15 to 2^16.
    const auto half = static_cast<uint16_t>(
        format == FloatFormat::kBFloat16 ? bits >> 16 : (random() & 0x8fff) | 0x3000);
    std::memcpy(&bytes[2 * i], &half, 2);
  }
  return bytes;
}

// A row of `count` values that begins at value `first`, `step` values apart.
inline TensorView row_at(const std::vector<std::byte>& bytes, FloatFormat format, size_t first,
                         size_t count, int64_t step = 1) {
  TensorView row = view_of(bytes.data(), format, count);
  row.data += first * static_cast<size_t>(bytes_of(format));
  row.strides_bytes[0] = step * bytes_of(format);
  return row;
}

}  // namespace pertoken::testing
