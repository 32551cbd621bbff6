// The names of sites, interned once a process and shared by all recorders. A name is interned when
// a module is instrumented or a region is made, never on the hot path, which carries its code.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace pertoken {

enum class SiteCategory : uint8_t { kModule, kRegion, kGenerate };

struct SiteName {
  SiteCategory category;
  std::string name;
};

// So much of each category: names that a program makes up for its regions take no module's place.
inline constexpr uint32_t kMaxSites = 1u << 17;
inline constexpr size_t kMaxSiteNameBytes = size_t{16} << 20;

// The code of (category, name). Codes are dense from 0. Once a category is full, its further names
// share the code of "(other)", so that names made up at run time cannot fill the memory.
// Throws std::bad_alloc.
uint32_t intern_site(SiteCategory category, std::string_view name);

// All names, by code.
std::vector<SiteName> site_names();

// Hears of every name, in the order of their codes, on whichever thread interns it.
class SiteWatcher {
 public:
  virtual ~SiteWatcher() = default;
  // Must not intern a name.
  virtual void site_added(uint32_t code, SiteCategory category, std::string_view name) noexcept = 0;
};

// From now on, and of those that there are, before this returns. In a forked child nobody watches.
void watch_sites(SiteWatcher& watcher);
void unwatch_sites(SiteWatcher& watcher) noexcept;

}  // namespace pertoken
