#include "fuzz/strict_json.h"

#include <cstddef>
#include <cstdint>
#include <utility>

namespace pertoken::fuzz {
namespace {

constexpr int kDeepest = 64;

class Parser {
 public:
  explicit Parser(std::string_view text) : text_(text) {}

  bool whole(Json& value) {
    blanks();
    if (!parse(value, 0)) return false;
    blanks();
    return at_ == text_.size() || fail("something follows");
  }

  std::string fault() const {
    return "at byte " + std::to_string(at_) + ": " + fault_ + ": " +
           std::string(text_.substr(at_ < 60 ? 0 : at_ - 60, 120));
  }

 private:
  bool fail(const char* fault) {
    fault_ = fault;
    return false;
  }
  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }
  bool take(char c) {
    if (at_ >= text_.size() || text_[at_] != c) return false;
    ++at_;
    return true;
  }
  bool word(std::string_view word) {
    if (text_.substr(at_, word.size()) != word) return fail("no value");
    at_ += word.size();
    return true;
  }
  void blanks() {
    while (peek() == ' ' || peek() == '\n' || peek() == '\r' || peek() == '\t') ++at_;
  }

  bool parse(Json& value, int depth) {
    if (depth > kDeepest) return fail("too deep");
    switch (peek()) {
      case '{':
        value.type = Json::Type::kObject;
        return object(value, depth);
      case '[':
        value.type = Json::Type::kArray;
        return array(value, depth);
      case '"':
        value.type = Json::Type::kString;
        return string(value.text);
      case 't':
        value.type = Json::Type::kBool;
        return word("true");
      case 'f':
        value.type = Json::Type::kBool;
        return word("false");
      case 'n':
        return word("null");
      default:
        value.type = Json::Type::kNumber;
        return number(value.text);
    }
  }

  bool object(Json& value, int depth) {
    take('{');
    blanks();
    if (take('}')) return true;
    do {
      blanks();
      std::string key;
      if (!string(key)) return false;
      blanks();
      if (!take(':')) return fail("no colon");
      blanks();
      Json item;
      if (!parse(item, depth + 1)) return false;
      if (!value.members.emplace(std::move(key), std::move(item)).second) return fail("key twice");
      blanks();
    } while (take(','));
    return take('}') || fail("object not closed");
  }

  bool array(Json& value, int depth) {
    take('[');
    blanks();
    if (take(']')) return true;
    do {
      blanks();
      if (!parse(value.items.emplace_back(), depth + 1)) return false;
      blanks();
    } while (take(','));
    return take(']') || fail("array not closed");
  }

  bool digits() {
    const size_t begin = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ > begin || fail("no digit");
  }

  bool number(std::string& text) {
    const size_t begin = at_;
    take('-');
    if (!take('0') && !digits()) return false;
    if (take('.') && !digits()) return false;
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      if (!take('+')) take('-');
      if (!digits()) return false;
    }
    text = text_.substr(begin, at_ - begin);
    return true;
  }

  bool string(std::string& text) {
    if (!take('"')) return fail("no string");
    const size_t begin = at_;
    while (peek() != '"') {
      if (at_ >= text_.size()) return fail("string not closed");
      if (!character()) return false;
    }
    text = text_.substr(begin, at_ - begin);
    ++at_;
    return true;
  }

  bool character() {
    const auto first = static_cast<unsigned char>(text_[at_]);
    if (first < 0x20) return fail("control character");
    if (first == '\\') return escape();
    if (first < 0x80) {
      ++at_;
      return true;
    }
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : first >= 0xC2 ? 1 : 0;
    if (more == 0 || first > 0xF4 || at_ + static_cast<size_t>(more) >= text_.size()) {
      return fail("not UTF-8");
    }
    uint32_t point = first & (0x3Fu >> more);
    for (int i = 1; i <= more; ++i) {
      const auto byte = static_cast<unsigned char>(text_[at_ + static_cast<size_t>(i)]);
      if ((byte & 0xC0) != 0x80) return fail("not UTF-8");
      point = point << 6 | (byte & 0x3F);
    }
    constexpr uint32_t kLeast[] = {0, 0x80, 0x800, 0x10000};
    if (point < kLeast[more] || point > 0x10FFFF || (point >= 0xD800 && point <= 0xDFFF)) {
      return fail("not UTF-8");
    }
    at_ += static_cast<size_t>(more) + 1;
    return true;
  }

  bool escape() {
    ++at_;
    const char kind = peek();
    if (kind == '\0' || std::string_view("\"\\/bfnrtu").find(kind) == std::string_view::npos) {
      return fail("unknown escape");
    }
    ++at_;
    if (kind != 'u') return true;
    for (int i = 0; i < 4; ++i) {
      const char c = peek();
      const bool hex = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
      if (!hex) return fail("escape without four digits");
      ++at_;
    }
    return true;
  }

  std::string_view text_;
  size_t at_ = 0;
  std::string fault_;
};

}  // namespace

bool parse_json(std::string_view text, Json& value, std::string& fault) {
  Parser parser(text);
  if (parser.whole(value)) return true;
  fault = parser.fault();
  return false;
}

}  // namespace pertoken::fuzz
