#include "cuda/driver_api.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstring>
#include <iterator>

namespace pertoken::cuda {

namespace {

constexpr const char* kLibrary = "libcuda.so.1";

// Stored with release, after the table was filled; pairs with the acquire load in driver().
std::atomic<const DriverApi*> replacement{nullptr};

struct LoadedDriver {
  DriverApi api;
  std::string reason;
  bool is_there = false;

  LoadedDriver() { is_there = load_driver(kLibrary, api, reason); }
};

// Where in the table the function of a symbol stands.
struct Slot {
  const char* symbol;
  size_t offset_bytes;
};
constexpr Slot kTableSlots[] = {
#define PERTOKEN_SLOT(symbol, arguments) {#symbol, offsetof(DriverApi, symbol)},
    PERTOKEN_DRIVER_FUNCTIONS(PERTOKEN_SLOT)
#undef PERTOKEN_SLOT
};

// Of a function pointer nothing but its bits comes out of dlsym(). False where it has none.
bool fill(const Slot& slot, void* library, DriverApi& api) {
  void* const function = dlsym(library, slot.symbol);
  std::memcpy(reinterpret_cast<std::byte*>(&api) + slot.offset_bytes,
              static_cast<const void*>(&function), sizeof function);
  return function != nullptr;
}

}  // namespace

bool load_driver(const char* path, DriverApi& api, std::string& reason) {
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL | RTLD_NOLOAD);
  if (library == nullptr) library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    const char* error = dlerror();  // NOLINT(concurrency-mt-unsafe): glibc keeps one a thread
    reason = std::string("the CUDA driver could not be loaded: ") + error;
    return false;
  }
  const auto* const missing = std::ranges::find_if_not(
      kTableSlots, [&](const Slot& slot) { return fill(slot, library, api); });
  if (missing == std::end(kTableSlots)) return true;
  api = {};
  dlclose(library);
  reason = std::string("the CUDA driver has no ") + missing->symbol +
           "; one of CUDA 12.0 or later is needed";
  return false;
}

DriverStatus driver() {
  if (const DriverApi* api = replacement.load(std::memory_order_acquire)) return {api, {}};
  static const LoadedDriver& loaded = *new LoadedDriver;  // used until the very end
  return {loaded.is_there ? &loaded.api : nullptr, loaded.reason};
}

void replace_driver(const DriverApi* api) noexcept {
  replacement.store(api, std::memory_order_release);
}

std::string error_text(const DriverApi& api, CUresult result) {
  const char* name = nullptr;
  if (api.cuGetErrorName(result, &name) != CUDA_SUCCESS || name == nullptr) name = "CUDA error";
  return std::string(name) + " (" + std::to_string(result) + ")";
}

}  // namespace pertoken::cuda
