// Turns the observations of a snapshot into numpy columns. Cold, under the GIL.
#pragma once

#include <pybind11/pybind11.h>

#include "core/recorder.h"

namespace pertoken::bindings {

// {"observations": {...}, "buckets": {...}}: one entry an observation, and one a filled bucket.
pybind11::dict observation_columns(const StoreSnapshot& store);

// How many are missing, by reason.
pybind11::dict device_observation_losses(const ObservationLosses& losses);

}  // namespace pertoken::bindings
