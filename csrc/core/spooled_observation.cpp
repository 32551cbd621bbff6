#include "core/spooled_observation.h"

#include <cstring>
#include <stdexcept>
#include <utility>
#include <vector>

#include "core/packed_buckets.h"

namespace pertoken {
namespace {

// Columns of tables are signed; and a sum of some such counts stays inside.
constexpr uint64_t kMostValues = uint64_t{1} << 61;

bool is_sound(const ObservationFrame& head) {
  const bool has_counts = head.zeros < kMostValues && head.nans < kMostValues &&
                          head.pos_infs < kMostValues && head.neg_infs < kMostValues;
  return has_counts && head.kind <= kOutsideSteps && head.format < kFloatFormats &&
         head.row >= kAllRows && head.weight >= 1 && head.weight < kLargestWeight;
}

}  // namespace

void add_observation(FrameText& frames, uint64_t number, int64_t last_step,
                     const Observation& observation) {
  const ExpHistogram& values = observation.values;
  const ObservationFrame head{.number = number,
                              .last_step = last_step,
                              .step = observation.step,
                              .site = observation.site,
                              .row = observation.row,
                              .kind = observation.kind,
                              .format = static_cast<uint8_t>(observation.format),
                              .scale = static_cast<int8_t>(values.scale()),
                              .zero = 0,
                              .weight = observation.weight,
                              .zeros = values.zero_count(),
                              .nans = values.nan_count(),
                              .pos_infs = values.pos_inf_count(),
                              .neg_infs = values.neg_inf_count(),
                              .sum = values.sum(),
                              .sum_sq = values.sum_sq(),
                              .min = values.min(),
                              .max = values.max()};
  std::vector<uint8_t> packed;
  pack(values.positive(), packed);
  pack(values.negative(), packed);
  frames.add(FrameType::kObservation, head, std::as_bytes(std::span(packed)));
}

std::optional<SpooledObservation> read_observation(std::span<const std::byte> payload) {
  ObservationFrame head;
  if (payload.size() < sizeof(head)) return std::nullopt;
  std::memcpy(&head, payload.data(), sizeof(head));
  std::span<const uint8_t> packed(reinterpret_cast<const uint8_t*>(payload.data()), payload.size());
  packed = packed.subspan(sizeof(head));
  HistogramParts parts{.scale = head.scale,
                       .zeros = head.zeros,
                       .nans = head.nans,
                       .pos_infs = head.pos_infs,
                       .neg_infs = head.neg_infs,
                       .sum = head.sum,
                       .sum_sq = head.sum_sq,
                       .min = head.min,
                       .max = head.max};
  if (!is_sound(head) || !unpack(packed, parts.positive) || !unpack(packed, parts.negative) ||
      !packed.empty()) {
    return std::nullopt;
  }
  try {
    ExpHistogram values(std::move(parts));
    if (values.count() >= kMostValues) return std::nullopt;
    return SpooledObservation{head.last_step,
                              {.step = head.step,
                               .kind = head.kind,
                               .row = head.row,
                               .site = head.site,
                               .format = static_cast<FloatFormat>(head.format),
                               .weight = head.weight,
                               .values = std::move(values)}};
  } catch (const std::logic_error&) {  // a bucket or a scale that cannot be
    return std::nullopt;
  } catch (const std::overflow_error&) {
    return std::nullopt;
  }
}

}  // namespace pertoken
