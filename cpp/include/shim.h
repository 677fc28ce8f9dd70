// The bridge's C++ side: what src/bridge.rs sees. No NVIDIA header is included here.
//
// C++ does only what needs NVIDIA's headers. Paths, policy, hashing and files stay in Rust.
#pragma once

#include <cstdint>
#include <memory>

#include "rust/cxx.h"

namespace watus {

struct VersionInfo;
struct BuildOptions;
struct IoTensor;
struct BuildObserver;

// The opened TensorRT libraries. One per process: TensorRT keeps the first logger it is given for good.
class Library {
 public:
  struct Symbols;
  explicit Library(std::unique_ptr<Symbols> symbols);
  ~Library();
  Symbols const& symbols() const { return *symbols_; }

 private:
  std::unique_ptr<Symbols> symbols_;
};

// A serialized engine and the timing cache as the build left it.
class Plan {
 public:
  struct Parts;
  explicit Plan(std::unique_ptr<Parts> parts);
  ~Plan();
  rust::Slice<uint8_t const> bytes() const;
  rust::Slice<uint8_t const> timing_cache() const;

 private:
  std::unique_ptr<Parts> parts_;
};

// A deserialized engine with one execution context. Not thread safe; one thread at a time.
class Session {
 public:
  struct Parts;
  explicit Session(std::unique_ptr<Parts> parts);
  ~Session();
  rust::Vec<IoTensor> io() const;
  rust::Vec<int64_t> tensor_shape(rust::Str name) const;
  void bind(rust::Str name, rust::Slice<int64_t const> dims, size_t device_pointer);
  // The address of either, where the shape was set or is static.
  void set_address(rust::Str name, size_t device_pointer);
  // An output whose size depends on values: the bytes it can need for the inputs' shapes, where it may write, and the
  // shape it had in the last run.
  int64_t most_bytes(rust::Str name) const;
  void give_room(rust::Str name, size_t device_pointer, uint64_t bytes);
  rust::Vec<int64_t> written_shape(rust::Str name) const;
  // For a session loaded with shared scratch memory: how much it wants, and where that is.
  int64_t scratch_bytes() const;
  void set_scratch(size_t device_pointer, int64_t bytes);
  void enqueue(size_t stream);
  rust::String inspect() const;

 private:
  std::unique_ptr<Parts> parts_;
};

// What RTX compiles when the engines of a model are loaded and first run; empty for the others. One thread at a time.
class KernelCache {
 public:
  struct Parts;
  explicit KernelCache(std::unique_ptr<Parts> parts);
  ~KernelCache();
  rust::Vec<uint8_t> bytes() const;
  Parts& parts() { return *parts_; }

 private:
  std::unique_ptr<Parts> parts_;
};

VersionInfo header_version();
VersionInfo library_version(rust::Str core_path);
std::unique_ptr<Library> open_library(rust::Str core_path, rust::Str parser_path, rust::Str plugin_path);
std::unique_ptr<Plan> build_plan(Library const& library, BuildOptions const& options, BuildObserver const& observer);
std::unique_ptr<Session> load_plan(Library const& library, rust::Slice<uint8_t const> plan, bool tf32);
// With scratch memory of the caller's, and kernels that `kernels` may have, which must outlive the session.
std::unique_ptr<Session> load_plan_with(Library const& library, rust::Slice<uint8_t const> plan, bool tf32,
                                        KernelCache& kernels);
std::unique_ptr<KernelCache> new_kernel_cache(rust::Slice<uint8_t const> before);

}  // namespace watus
