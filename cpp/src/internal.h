// Shared by the .cc files: the logger that turns TensorRT's "false plus log lines" into exceptions, and the symbols.
#pragma once

#include <deque>
#include <mutex>
#include <stdexcept>
#include <string>

#include "compat.h"
#include "shim.h"

namespace watus {

// TensorRT calls the logger from several threads.
class Logger final : public nvinfer1::ILogger {
 public:
  void log(Severity severity, char const* message) noexcept override;
  void clear();
  // `what`, followed by the errors logged since clear().
  [[noreturn]] void fail(std::string const& what);

 private:
  std::mutex mutex_;
  std::deque<std::string> errors_;
};

Logger& logger();

struct Library::Symbols {
  void* (*create_builder)(void* logger, int32_t version);
  void* (*create_runtime)(void* logger, int32_t version);
  void* (*create_parser)(void* network, void* logger, int version);
};

inline std::string to_string(rust::Str text) { return {text.data(), text.size()}; }

}  // namespace watus
