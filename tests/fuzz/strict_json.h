// A strict JSON parser (RFC 8259, UTF-8, no key twice), for checks of what we write. Slow and
// small.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace pertoken::fuzz {

struct Json {
  enum class Type { kNull, kBool, kNumber, kString, kArray, kObject };
  Type type = Type::kNull;
  std::string text;  // of a number as it stands; of a string between its quotes, as it stands
  std::vector<Json> items;
  std::map<std::string, Json> members;

  // Null where there is none.
  const Json* member(const std::string& key) const {
    const auto found = members.find(key);
    return found == members.end() ? nullptr : &found->second;
  }
};

// Parses all of `text`; on a fault returns false and says in `fault` what and where.
bool parse_json(std::string_view text, Json& value, std::string& fault);

}  // namespace pertoken::fuzz
