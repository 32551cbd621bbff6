// Memory that kernels write to. Nobody tells when the last of them has run, so none of it is ever
// given back. With the device's context current; cold.
#pragma once

#include <cstddef>
#include <cstdint>

#include "cuda/driver_api.h"
#include "cuda/tagged_words.h"

namespace pertoken::cuda {

// Device memory, filled with zeros: waited for, on a stream of its own, so that no other is
// touched.
CUresult make_zeroed_memory(const DriverApi& api, size_t bytes, CUdeviceptr& memory);

// The words of a ring as the device knows them and as the host does. The memory is the process's
// own, registered with the driver, so that reading it is safe even if the context is gone. The rest
// of the ring is as `ring` says.
CUresult make_pinned_words(const DriverApi& api, const DeviceRing& ring, uint64_t*& of_device,
                           uint64_t*& of_host);

}  // namespace pertoken::cuda
