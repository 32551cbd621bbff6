// What counts tensors on GPUs for all recordings of the process.
#pragma once

#include <string>

#include "cuda/logit_device.h"
#include "cuda/stats_device.h"

namespace pertoken::bindings {

// Null, with a reason for people, where there is no driver. Never destroyed: kernels may run until
// the process ends.
cuda::StatsDevices* stats_devices(std::string& reason);
// What reads logits there; likewise.
cuda::LogitDevices* logit_devices(std::string& reason);

// When another driver takes the place of the one before: nothing of that one may be handed out.
void forget_stats_devices();

}  // namespace pertoken::bindings
