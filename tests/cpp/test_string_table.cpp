// Names are interned once, and bounded by number and by bytes, each category for itself.
#include <string>

#include "check.h"
#include "core/string_table.h"

namespace pertoken {
namespace {

std::string name_of(uint32_t code) { return site_names().at(code).name; }

TEST(a_name_has_one_code_in_each_category) {
  const uint32_t module = intern_site(SiteCategory::kModule, "same");
  const uint32_t region = intern_site(SiteCategory::kRegion, "same");
  CHECK(module != region);
  CHECK_EQ(intern_site(SiteCategory::kModule, "same"), module);
  CHECK_EQ(name_of(region), std::string("same"));
  CHECK(site_names().at(region).category == SiteCategory::kRegion);
}

TEST(names_made_up_at_run_time_fill_neither_the_memory_nor_the_place_of_modules) {
  const uint32_t known = intern_site(SiteCategory::kRegion, "known before");
  uint32_t last = 0;
  for (uint32_t i = 0; i < 2 * kMaxSites; ++i) {
    last = intern_site(SiteCategory::kRegion, "request " + std::to_string(i));
  }
  CHECK(site_names().size() <= kMaxSites + 16);
  CHECK_EQ(name_of(last), std::string("(other)"));
  CHECK_EQ(intern_site(SiteCategory::kRegion, "one more"), last);
  CHECK_EQ(intern_site(SiteCategory::kRegion, "known before"), known);
  const uint32_t module = intern_site(SiteCategory::kModule, "a module of later");
  CHECK_EQ(name_of(module), std::string("a module of later"));
}

TEST(long_names_are_bounded_by_their_bytes) {
  const std::string tail(size_t{1} << 20, 'x');
  size_t kept = 0;
  for (int i = 0; i < 64; ++i) {
    const uint32_t code = intern_site(SiteCategory::kGenerate, std::to_string(i) + tail);
    kept += name_of(code) != "(other)";
  }
  CHECK_EQ(kept, kMaxSiteNameBytes >> 20);
}

}  // namespace
}  // namespace pertoken
