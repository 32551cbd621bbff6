// What the threads of a block of the logit kernels do between its barriers. The kernels
// (kernels/gpu_logits.cu) add the barriers and the shuffles; the tests run the same functions on a
// processor, one thread of a block after the other. Pure; any thread.
//
// A block reads a row. A thread takes vectors of it in turns, several loads under way at once, and
// scales what it has added up once a turn. Exponentials are float32, and so are sums of the 16 of
// one turn; sums of those are doubles. All formats share the code behind their loads.
#pragma once

#include <cmath>
#include <cstdint>

#include "core/float_bits.h"
#include "core/softmax_sums.h"
#include "cuda/device_ops.h"
#include "cuda/logit_record.h"
#include "cuda/stats_layout.h"
#include "cuda/stats_values.h"
#include "cuda/tagged_words.h"

namespace pertoken::cuda {

inline constexpr uint32_t kLogitThreads = 1024;
inline constexpr uint32_t kLogitRows = 64;  // of a launch
inline constexpr int kLogitsATurn = 16;     // of a thread

// Token ids in the device's memory, by row and column; none where the address is 0.
struct DeviceTokens {
  uint64_t address;
  int64_t row_bytes;
  int64_t column_bytes;
  uint32_t value_bytes;  // 4 or 8
};

// One block a row.
struct LogitArgs {
  uint64_t rows[kLogitRows];  // where the first logit of each lies
  KeptRow* kept;              // of the first of them
  uint64_t copies;            // where the first is copied to; 0: none is
  uint64_t copy_bytes;        // from one copy to the next; a multiple of those of a vector
  int64_t stride_bytes;
  DeviceTokens drafts;  // column p is the candidate that place p of a row verifies
  uint32_t first;       // number of the first of them; a number is row * places + place
  uint32_t places;      // of each row
  uint32_t vocabulary;
  FloatFormat format;
};

// Where a token that was chosen is known from, besides its number.
inline constexpr int32_t kUnknownToken = -1;
inline constexpr int32_t kFedToken = -2;    // it is in what a later forward was fed
inline constexpr int32_t kDraftToken = -3;  // it is the candidate that was verified

struct ToldToken {
  uint32_t kept;  // the number of its row
  uint32_t row;
  uint32_t place;
  int32_t token;
};

// One thread a token.
struct TellArgs {
  ToldToken tokens[kLogitRows];
  const KeptRow* kept;
  DeviceTokens fed;  // column 0 of each row
  DeviceRing ring;
  uint32_t count;
  uint32_t launch;
  uint32_t vocabulary;
  FloatFormat format;
};

PERTOKEN_HOST_DEVICE inline float logit_at(uint64_t address, FloatFormat format) noexcept {
  switch (format) {
    case FloatFormat::kFloat32:
      return float_of(load_value<uint32_t>(address));
    case FloatFormat::kBFloat16:
      return float_of(uint32_t{load_value<uint16_t>(address)} << 16);
    default:
      return float_of(bits_of_half(load_value<uint16_t>(address)));
  }
}

PERTOKEN_HOST_DEVICE inline void copy_logit(uint64_t from, uint64_t to,
                                            FloatFormat format) noexcept {
  if (bytes_of(format) == 4) {
    store_value(to, load_value<uint32_t>(from));
  } else {
    store_value(to, load_value<uint16_t>(from));
  }
}

// -1 where there is none.
PERTOKEN_HOST_DEVICE inline int64_t token_at(const DeviceTokens& tokens, uint32_t row,
                                             uint32_t column) noexcept {
  if (tokens.address == 0) return -1;
  const uint64_t address =
      tokens.address + static_cast<uint64_t>(row * tokens.row_bytes + column * tokens.column_bytes);
  return tokens.value_bytes == 8 ? load_value<int64_t>(address) : load_value<int32_t>(address);
}

// The logits of one turn.
PERTOKEN_HOST_DEVICE inline void add_turn(const float (&logits)[kLogitsATurn],
                                          SoftmaxSums& sums) noexcept {
  const float infinity = float_of(kFloat32Infinity);
  float largest = -infinity;
  float second = -infinity;
  bool is_wrong = false;
  PERTOKEN_UNROLL
  for (const float logit : logits) {
    is_wrong |= !(logit < infinity);
    const float less = logit < largest ? logit : largest;
    second = less > second ? less : second;
    largest = logit > largest ? logit : largest;
  }
  if (is_wrong) return sums.spoil();
  sums.raise(largest, second);
  if (sums.max == SoftmaxSums::kLowest) return;
  const auto max = static_cast<float>(sums.max);
  float exps = 0;
  float weighted = 0;
  PERTOKEN_UNROLL
  for (const float logit : logits) {
    const float exponent = larger(logit - max, static_cast<float>(kLowestExponent));
    const float e = std::exp(exponent);
    exps += e;
    weighted += exponent * e;
  }
  sums.exps += exps;
  sums.weighted += weighted;
}

// A thread's vectors of one turn, `kStepBytes` apart, as far as they lie before `end`, and copies
// of them `copy_offset` further on where that is not 0. Minus infinity, which adds nothing, for
// others.
template <int Bytes>
PERTOKEN_HOST_DEVICE inline void load_turn(uint64_t address, uint64_t end, uint64_t copy_offset,
                                           bool is_half, float (&logits)[kLogitsATurn]) noexcept {
  constexpr uint64_t kStepBytes = uint64_t{kLogitThreads} * kVectorBytes;
  constexpr int kValues = kVectorBytes / Bytes;
  const uint32_t lowest = Bytes == 4 ? 0xff800000U : is_half ? 0xfc00fc00U : 0xff80ff80U;
  Vector vectors[kLogitsATurn / kValues];
  PERTOKEN_UNROLL
  for (Vector& vector : vectors) {
    vector = {{lowest, lowest, lowest, lowest}};
    if (address < end) vector = load_vector(address);
    address += kStepBytes;
  }
  PERTOKEN_UNROLL
  for (int i = 0; i < kLogitsATurn; ++i) {
    const Vector& vector = vectors[i / kValues];
    const int value = i % kValues;
    logits[i] = float_of(Bytes == 4 ? bits_of_value<FloatFormat::kFloat32>(vector, value % 4)
                         : is_half  ? bits_of_value<FloatFormat::kFloat16>(vector, value)
                                    : bits_of_value<FloatFormat::kBFloat16>(vector, value));
  }
  if (copy_offset == 0) return;
  address += copy_offset - kStepBytes * (kLogitsATurn / kValues);
  PERTOKEN_UNROLL
  for (const Vector& vector : vectors) {
    if (address < end + copy_offset) store_vector(address, vector);
    address += kStepBytes;
  }
}

// Where the copy of a row begins: as far behind an aligned address as the row does, if its logits
// lie side by side, so that whole vectors stay whole. 0: there is none.
PERTOKEN_HOST_DEVICE inline uint64_t copy_of_row(const LogitArgs& args, uint32_t number) noexcept {
  if (args.copies == 0) return 0;
  const bool is_dense = args.stride_bytes == bytes_of(args.format);
  const uint64_t begin = args.copies + number * args.copy_bytes;
  return begin + (is_dense ? args.rows[number] % kVectorBytes : 0);
}

// A thread's share of a row.
PERTOKEN_HOST_DEVICE inline void read_logits(const LogitArgs& args, uint32_t number,
                                             uint32_t thread, SoftmaxSums& sums) noexcept {
  const auto bytes = static_cast<uint64_t>(bytes_of(args.format));
  const uint64_t row = args.rows[number];
  const uint64_t copy = copy_of_row(args, number);
  const bool is_dense = args.stride_bytes == bytes_of(args.format);
  // All but less than a vector before the first whole one and behind the last; or nothing.
  const uint64_t end = row + args.vocabulary * bytes;
  const uint64_t aligned = (row + kVectorBytes - 1) / kVectorBytes * kVectorBytes;
  const uint64_t begin = is_dense && aligned < end ? aligned : end;
  const uint64_t whole = begin + (end - begin) / kVectorBytes * kVectorBytes;
  const uint64_t copy_offset = copy == 0 ? 0 : copy - row;
  const uint64_t turn_bytes = kLogitThreads * kLogitsATurn * bytes;
  const uint32_t shift = bytes == 4 ? 2 : 1;  // a division by a variable is long
  const auto before = static_cast<uint32_t>((begin - row) >> shift);
  const auto behind = static_cast<uint32_t>((end - whole) >> shift);
  uint64_t at = begin + thread * uint64_t{kVectorBytes};
  uint32_t single = thread;
  PERTOKEN_NO_UNROLL
  while (true) {
    float logits[kLogitsATurn];
    if (at < whole) {
      if (bytes == 4) {
        load_turn<4>(at, whole, copy_offset, false, logits);
      } else {
        load_turn<2>(at, whole, copy_offset, args.format == FloatFormat::kFloat16, logits);
      }
      at += turn_bytes;
    } else if (single < before + behind) {
      const uint32_t index = single < before ? single : args.vocabulary - behind + single - before;
      const uint64_t from = row + static_cast<uint64_t>(index * args.stride_bytes);
      PERTOKEN_UNROLL
      for (float& logit : logits) logit = -float_of(kFloat32Infinity);
      logits[0] = logit_at(from, args.format);
      if (copy != 0) copy_logit(from, copy + index * bytes, args.format);
      single += kLogitThreads;
    } else {
      return;
    }
    add_turn(logits, sums);
  }
}

// One thread of the block, when the shares are merged.
PERTOKEN_HOST_DEVICE inline void keep_row(const LogitArgs& args, uint32_t number,
                                          const SoftmaxSums& sums) noexcept {
  const LogitStats stats = sums.stats();
  const uint32_t all = args.first + number;
  const uint32_t place = all % args.places;
  const int64_t draft =
      place + 1 < args.places ? token_at(args.drafts, all / args.places, place) : -1;
  auto draft_logprob = static_cast<float>(LogitStats::kUnknown);
  if (draft >= 0 && draft < int64_t{args.vocabulary}) {
    const uint64_t address = args.rows[number] + static_cast<uint64_t>(draft * args.stride_bytes);
    draft_logprob = static_cast<float>(logit_at(address, args.format) - stats.log_sum);
  }
  args.kept[number] = {stats.log_sum,
                       static_cast<float>(stats.top1_prob),
                       static_cast<float>(stats.margin),
                       static_cast<float>(stats.entropy),
                       draft_logprob,
                       copy_of_row(args, number)};
}

// One token; `next()` gives the number of the next record.
template <typename Next>
PERTOKEN_HOST_DEVICE inline void tell_token(const TellArgs& args, uint32_t number,
                                            Next&& next) noexcept {
  const ToldToken& told = args.tokens[number];
  const KeptRow kept = args.kept[told.kept];
  auto logprob = static_cast<float>(LogitStats::kUnknown);
  if (told.token == kDraftToken) {
    logprob = kept.draft_logprob;
  } else {
    const int64_t token = told.token == kFedToken ? token_at(args.fed, told.row, 0) : told.token;
    if (token >= 0 && token < int64_t{args.vocabulary} && kept.copy != 0) {
      const uint64_t address =
          kept.copy + static_cast<uint64_t>(token) * static_cast<uint64_t>(bytes_of(args.format));
      logprob = static_cast<float>(logit_at(address, args.format) - kept.log_sum);
    }
  }
  const uint64_t index = next();
  uint64_t* const record = slot_at(args.ring, index);
  const uint64_t tag = tag_of(index, args.ring.capacity_log2);
  const auto write = [&](LogitWord word, uint64_t content) {
    store_word(record + static_cast<uint32_t>(word), tagged(content, tag));
  };
  write(LogitWord::kLaunch, args.launch);
  write(LogitWord::kRow, told.row);
  write(LogitWord::kPlace, told.place);
  write(LogitWord::kTop1Prob, bits_of(kept.top1_prob));
  write(LogitWord::kMargin, bits_of(kept.margin));
  write(LogitWord::kEntropy, bits_of(kept.entropy));
  write(LogitWord::kLogprob, bits_of(logprob));
}

}  // namespace pertoken::cuda
