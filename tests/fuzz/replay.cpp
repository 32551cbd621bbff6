// Runs a fuzz target for compilers without libFuzzer: over files, and over inputs made at random.
//
//     fuzz_trace_writer [-seconds=S] [-seed=N] [FILE or FOLDER]...
//
// With -seconds, inputs are made for so long, each from a number of its own, the seed and those
// after it. What fails is said before it runs: by its path, or by the number to give as -seed.
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <random>
#include <string>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace {

constexpr size_t kLongestInput = 4096;

size_t run_files(const std::filesystem::path& argument) {
  std::vector<std::filesystem::path> paths;
  if (std::filesystem::is_directory(argument)) {
    for (const auto& entry : std::filesystem::directory_iterator(argument)) {
      paths.push_back(entry.path());
    }
  } else {
    paths.push_back(argument);
  }
  for (const std::filesystem::path& path : paths) {
    std::ifstream stream(path, std::ios::binary);
    if (!stream) {
      std::printf("cannot read %s\n", path.c_str());
      std::exit(2);
    }
    const std::vector<char> data{std::istreambuf_iterator<char>(stream), {}};
    std::printf("%s\n", path.c_str());
    std::fflush(stdout);
    LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(data.data()), data.size());
  }
  return paths.size();
}

// Bytes of one input have a common bias, so that some inputs are of few kinds and others of many.
void run_number(uint64_t number) {
  std::mt19937_64 random(number);
  std::vector<uint8_t> data(random() % kLongestInput);
  const uint64_t mask = random() | random() >> (random() % 8);
  for (uint8_t& byte : data) byte = static_cast<uint8_t>(random() & (mask >> (random() % 56)));
  LLVMFuzzerTestOneInput(data.data(), data.size());
}

size_t run_random(uint64_t seed, double seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  size_t inputs = 0;
  do {
    std::printf("\r-seed=%llu", static_cast<unsigned long long>(seed + inputs));
    std::fflush(stdout);
    run_number(seed + inputs);
    ++inputs;
  } while (std::chrono::steady_clock::now() < end);
  std::printf("\n");
  return inputs;
}

}  // namespace

int main(int argc, char** argv) {
  uint64_t seed = 1;
  double seconds = -1;
  size_t inputs = 0;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument.rfind("-seconds=", 0) == 0) {
      seconds = std::strtod(argument.c_str() + 9, nullptr);
    } else if (argument.rfind("-seed=", 0) == 0) {
      seed = std::strtoull(argument.c_str() + 6, nullptr, 10);
    } else {
      inputs += run_files(argument);
    }
  }
  if (seconds >= 0) inputs += run_random(seed, seconds);
  std::printf("%zu inputs\n", inputs);
  return inputs > 0 ? 0 : 1;
}
