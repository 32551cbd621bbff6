#include "core/string_table.h"

#include <pthread.h>

#include <deque>
#include <mutex>
#include <unordered_map>

namespace pertoken {

namespace {

// What names are held in one category.
struct Codes {
  std::unordered_map<std::string_view, uint32_t> by_name;
  size_t name_bytes = 0;

  bool is_full() const { return by_name.size() >= kMaxSites || name_bytes >= kMaxSiteNameBytes; }
};

struct StringTable {
  std::mutex mutex;
  std::deque<SiteName> names;  // a deque, so that the keys below stay where they are
  std::vector<SiteWatcher*> watchers;
  Codes codes[3];
};

StringTable& table() {
  static StringTable* const instance = [] {
    // A fork while another thread interns a name must not leave the child a mutex held for ever.
    pthread_atfork([] { table().mutex.lock(); }, [] { table().mutex.unlock(); },
                   [] {
                     table().watchers.clear();
                     table().mutex.unlock();
                   });
    return new StringTable;
  }();
  return *instance;
}

}  // namespace

uint32_t intern_site(SiteCategory category, std::string_view name) {
  StringTable& strings = table();
  const std::lock_guard lock(strings.mutex);
  auto& codes = strings.codes[static_cast<size_t>(category)];
  if (codes.is_full() && !codes.by_name.contains(name)) name = "(other)";
  if (const auto known = codes.by_name.find(name); known != codes.by_name.end()) {
    return known->second;
  }
  const auto code = static_cast<uint32_t>(strings.names.size());
  strings.names.push_back({category, std::string(name)});
  codes.by_name.emplace(strings.names.back().name, code);
  codes.name_bytes += name.size();
  for (SiteWatcher* watcher : strings.watchers) watcher->site_added(code, category, name);
  return code;
}

void watch_sites(SiteWatcher& watcher) {
  StringTable& strings = table();
  const std::lock_guard lock(strings.mutex);
  strings.watchers.push_back(&watcher);
  for (uint32_t code = 0; code < strings.names.size(); ++code) {
    watcher.site_added(code, strings.names[code].category, strings.names[code].name);
  }
}

void unwatch_sites(SiteWatcher& watcher) noexcept {
  StringTable& strings = table();
  const std::lock_guard lock(strings.mutex);
  std::erase(strings.watchers, &watcher);
}

std::vector<SiteName> site_names() {
  StringTable& strings = table();
  const std::lock_guard lock(strings.mutex);
  return {strings.names.begin(), strings.names.end()};
}

}  // namespace pertoken
