// Opens TensorRT at run time and refuses a library the shim was not compiled for, before anything can crash.
#include <dlfcn.h>

#include "internal.h"
#include "watus-shim/src/bridge.rs.h"

namespace watus {
namespace {

constexpr size_t kept_errors = 16;

void* open_shared(std::string const& path) {
  // The parser resolves the core's symbols, so both go into the global scope, the core first.
  void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL);
  if (handle == nullptr) {
    throw std::runtime_error(std::string("cannot open ") + path + ": " + dlerror());
  }
  return handle;
}

template <typename F>
F symbol(void* handle, char const* name, std::string const& path) {
  void* address = dlsym(handle, name);
  if (address == nullptr) {
    throw std::runtime_error(path + " has no symbol " + name + ": not a TensorRT library?");
  }
  return reinterpret_cast<F>(address);
}

std::string version_text(VersionInfo const& v) {
  return std::to_string(v.major) + "." + std::to_string(v.minor) + "." + std::to_string(v.patch);
}

// RTX counts from 1 and TensorRT is past 8, so the number tells the family.
VersionInfo version_info(uint32_t number) {
  auto const v = compat::split_version(number);
  return {v.major == 1, v.major, v.minor, v.patch};
}

// RTX broke its ABI between 1.4, 1.5 and 1.6 (a mismatch crashes), so there the minor must agree. TensorRT only
// appends within a major, so a newer library serves older headers.
bool accepts(VersionInfo const& have) {
  auto const want = header_version();
  if (have.major != want.major) {
    return false;
  }
  return want.is_rtx ? have.minor == want.minor : have.minor >= want.minor;
}

}  // namespace

void Logger::log(Severity severity, char const* message) noexcept {
  try {
    if (severity <= Severity::kERROR) {
      std::lock_guard<std::mutex> guard(mutex_);
      if (errors_.size() == kept_errors) {
        errors_.pop_front();
      }
      errors_.emplace_back(message);
    }
    on_log(static_cast<int32_t>(severity), rust::String::lossy(message));
  } catch (...) {
    // Losing a log line is better than ending the process from a callback.
  }
}

void Logger::clear() {
  std::lock_guard<std::mutex> guard(mutex_);
  errors_.clear();
}

void Logger::fail(std::string const& what) {
  std::lock_guard<std::mutex> guard(mutex_);
  std::string text = what;
  for (auto const& error : errors_) {
    text += "\n  TensorRT: " + error;
  }
  errors_.clear();
  throw std::runtime_error(text);
}

Logger& logger() {
  static Logger* instance = new Logger;  // outlives every TensorRT object, static destruction included
  return *instance;
}

VersionInfo header_version() { return version_info(compat::header_version); }

VersionInfo library_version(rust::Str core_path) {
  auto const path = to_string(core_path);
  return version_info(symbol<uint32_t (*)()>(open_shared(path), "getInferLibVersion", path)());
}

std::unique_ptr<Library> open_library(rust::Str core_path, rust::Str parser_path, rust::Str plugin_path) {
  auto const core = to_string(core_path);
  auto const parser = to_string(parser_path);
  auto const have = library_version(core_path);
  if (!accepts(have)) {
    auto const want = header_version();
    throw std::runtime_error(core + " is version " + version_text(have) + ", but this binary was compiled for " +
                             (want.is_rtx ? "TensorRT-RTX " : "TensorRT ") + version_text(want));
  }
  void* core_handle = open_shared(core);
  void* parser_handle = open_shared(parser);
  auto symbols = std::make_unique<Library::Symbols>();
  symbols->create_builder = symbol<decltype(symbols->create_builder)>(core_handle, "createInferBuilder_INTERNAL", core);
  symbols->create_runtime = symbol<decltype(symbols->create_runtime)>(core_handle, "createInferRuntime_INTERNAL", core);
  symbols->create_parser =
      symbol<decltype(symbols->create_parser)>(parser_handle, "createNvOnnxParser_INTERNAL", parser);
  if (!plugin_path.empty()) {
    // TensorRT 8 parses InstanceNormalization, RoiAlign and others into plugins; registering them twice is harmless.
    auto const plugin = to_string(plugin_path);
    auto* init = symbol<bool (*)(void*, char const*)>(open_shared(plugin), "initLibNvInferPlugins", plugin);
    if (!init(&logger(), "")) {
      logger().fail(plugin + " could not register its plugins");
    }
  }
  return std::make_unique<Library>(std::move(symbols));
}

Library::Library(std::unique_ptr<Symbols> symbols) : symbols_(std::move(symbols)) {}
Library::~Library() = default;

}  // namespace watus
