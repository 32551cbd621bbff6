// The stamp kernel on a processor.
#pragma once

#include <utility>

#include "cuda/stamp_record.h"
#include "fake_driver.h"

namespace pertoken::testing {

inline constexpr int64_t kStampNs = 1200;

// `stamped` is told of every stamp that is written, and when it was.
inline void add_stamp_kernel(
    FakeDriver& driver, std::function<void(const cuda::StampPlace&, int64_t)> stamped = nullptr) {
  driver.add_kernel(
      cuda::kStampKernel,
      {{sizeof(cuda::StampArgs)}, kStampNs, [stamped = std::move(stamped)](const FakeLaunch& run) {
         const auto args = run.parameter<cuda::StampArgs>(0);
         const uint32_t replay = *args.replay;
         cuda::write_stamp(args, replay, run.device_ns, [&](uint64_t* next) {
           if (stamped) stamped({args.graph, args.ordinal, replay}, run.start_ns);
           return (*next)++;
         });
       }});
}

}  // namespace pertoken::testing
