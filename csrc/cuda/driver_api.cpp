#include "cuda/driver_api.h"

#include <dlfcn.h>

#include <atomic>

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

// Of a function pointer nothing but its bits comes out of dlsym().
template <typename Function>
bool find_symbol(void* library, const char* symbol, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, symbol));
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
  const char* missing = nullptr;
#define PERTOKEN_FIND_FUNCTION(symbol, arguments) \
  if (!find_symbol(library, #symbol, api.symbol) && missing == nullptr) missing = #symbol;
  PERTOKEN_DRIVER_FUNCTIONS(PERTOKEN_FIND_FUNCTION)
#undef PERTOKEN_FIND_FUNCTION
  if (missing == nullptr) return true;
  api = {};
  dlclose(library);
  reason =
      std::string("the CUDA driver has no ") + missing + "; one of CUDA 12.0 or later is needed";
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
