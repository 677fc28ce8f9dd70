// Every difference between TensorRT versions lives here. Nothing else in cpp/ may test a version macro.
//
// WATUS_RTX is 1 for TensorRT-RTX, 0 for TensorRT. WATUS_API is one comparable level: major * 100 + minor of TensorRT,
// and for RTX the level of the TensorRT release whose API it carries. TRT_MAJOR_RTX decides the family: in RTX headers
// NV_TENSORRT_MAJOR is RTX's own number.
#pragma once

#include <NvInfer.h>
#include <NvOnnxParser.h>
#include <dlfcn.h>

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

#if defined(TRT_MAJOR_RTX)
#define WATUS_RTX 1
#if TRT_MAJOR_RTX > 1 || TRT_MINOR_RTX >= 5
#define WATUS_API 1100
#elif TRT_MINOR_RTX == 4
#define WATUS_API 1016
#elif TRT_MINOR_RTX == 3
#define WATUS_API 1015
#else
#define WATUS_API 1011
#endif
#else
#define WATUS_RTX 0
#define WATUS_API (NV_TENSORRT_MAJOR * 100 + NV_TENSORRT_MINOR)
#endif

namespace watus::compat {

constexpr bool is_rtx = WATUS_RTX == 1;
constexpr uint32_t header_version = NV_TENSORRT_VERSION;

// TensorRT reports versions as major * 1000 + ... up to 9 and major * 10000 + ... from 10 (and RTX) on.
struct Version {
  uint32_t major, minor, patch;
};

constexpr Version split_version(uint32_t v) {
  if (v < 10000) {
    return {v / 1000, v / 100 % 10, v % 100};
  }
  return {v / 10000, v / 100 % 100, v % 100};
}

using DimsValue = std::remove_reference_t<decltype(std::declval<nvinfer1::Dims&>().d[0])>;

// `destroy()` went away in 10; virtual destructors have been public since 8.0.
template <typename T>
using Owned = std::unique_ptr<T>;

[[noreturn]] inline void unsupported(std::string const& what) {
  throw std::runtime_error(what + " is not supported by this TensorRT (built against " +
                           std::to_string(split_version(header_version).major) + "." +
                           std::to_string(split_version(header_version).minor) + (is_rtx ? " RTX)" : ")"));
}

inline uint32_t network_flags(bool strongly_typed) {
  uint32_t flags = 0;
#if WATUS_API < 1000
  flags |= 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#endif
#if WATUS_API >= 900 && WATUS_API < 1100
  if (strongly_typed) {
    flags |= 1U << static_cast<uint32_t>(nvinfer1::NetworkDefinitionCreationFlag::kSTRONGLY_TYPED);
  }
#elif WATUS_API < 900
  if (strongly_typed) {
    unsupported("a strongly typed network");
  }
#else
  (void)strongly_typed;  // always on
#endif
  return flags;
}

// Weakly typed networks: layers may compute in float16, and keep the precision that hold_in_full gives them. TensorRT
// 11 and RTX have no such networks.
inline void set_precision_flags(nvinfer1::IBuilderConfig& config, bool fp16, bool obey_precision_constraints) {
#if WATUS_API < 1100 && !WATUS_RTX
  if (fp16) config.setFlag(nvinfer1::BuilderFlag::kFP16);
  if (obey_precision_constraints) config.setFlag(nvinfer1::BuilderFlag::kOBEY_PRECISION_CONSTRAINTS);
#else
  (void)config;
  if (fp16) unsupported("builder flag 'fp16'");
  if (obey_precision_constraints) unsupported("builder flag 'obey_precision_constraints'");
#endif
}

// Holds layers of a weakly typed network in float32, by name. The parser names a node's layer as the node, and adds a
// suffix where it needs several. Layers that compute no floats (shapes, constants) are left alone.
inline void hold_in_full(nvinfer1::INetworkDefinition& network, std::set<std::string> const& names) {
#if WATUS_API < 1100 && !WATUS_RTX
  for (int32_t i = 0; i < network.getNbLayers(); ++i) {
    auto& layer = *network.getLayer(i);
    auto const type = layer.getType();
    if (names.count(layer.getName()) == 0 || type == nvinfer1::LayerType::kSHAPE ||
        type == nvinfer1::LayerType::kCONSTANT) {
      continue;
    }
    layer.setPrecision(nvinfer1::DataType::kFLOAT);
    for (int32_t output = 0; output < layer.getNbOutputs(); ++output) {
      if (layer.getOutput(output)->getType() == nvinfer1::DataType::kFLOAT) {
        layer.setOutputType(output, nvinfer1::DataType::kFLOAT);
      }
    }
  }
#else
  (void)network;
  if (!names.empty()) {
    unsupported("a precision by layer");
  }
#endif
}

inline void set_optimization_level(nvinfer1::IBuilderConfig& config, int32_t level) {
#if WATUS_API >= 806
  config.setBuilderOptimizationLevel(level);
#else
  (void)config;
  unsupported("optimization level " + std::to_string(level) + " (needs 8.6)");
#endif
}

// RTX builds for named compute capabilities, GPU or not. TensorRT always builds for the GPU it runs on.
inline void add_compute_capability(nvinfer1::IBuilderConfig& config, std::string const& name, int32_t index,
                                   int32_t total) {
#if WATUS_RTX
  if (index == 0 && !config.setNbComputeCapabilities(total)) {
    throw std::runtime_error("TensorRT-RTX refused " + std::to_string(total) + " compute capabilities");
  }
  // The enumerators are the capability without its dot (kSM89 = 89); the library refuses numbers it does not know.
  auto const dot = name.find('.');
  auto const digits = dot == std::string::npos ? name : name.substr(0, dot) + name.substr(dot + 1);
  auto const value = static_cast<nvinfer1::ComputeCapability>(std::stoi(digits));
  if (!config.setComputeCapability(value, index)) {
    throw std::runtime_error("TensorRT-RTX cannot build for compute capability " + name);
  }
#else
  (void)config;
  (void)index;
  (void)total;
  unsupported("building for compute capability " + name + " instead of this machine's GPU");
#endif
}

// TensorRT 8 and 9 also try the kernels of cuBLAS and cuDNN, by default, and give up where a library is not installed:
// those sources are left out then. From 10 on they are off by default.
inline void leave_out_missing_libraries(nvinfer1::IBuilderConfig& config) {
#if WATUS_API < 1000 && !WATUS_RTX
  auto const opens = [](char const* name) { return dlopen(name, RTLD_LAZY | RTLD_LOCAL) != nullptr; };
  auto const without = [&](nvinfer1::TacticSource source) {
    auto const bit = 1U << static_cast<uint32_t>(source);
    config.setTacticSources(config.getTacticSources() & ~bit);
  };
  if (!opens("libcublas.so.11") && !opens("libcublas.so.12")) {
    without(nvinfer1::TacticSource::kCUBLAS);
  }
  if (!opens("libcublasLt.so.11") && !opens("libcublasLt.so.12")) {
    without(nvinfer1::TacticSource::kCUBLAS_LT);
  }
  if (!opens("libcudnn.so.8")) {
    without(nvinfer1::TacticSource::kCUDNN);
  }
#else
  (void)config;
#endif
}

// Where sizes depend on values, TensorRT wants a profile although no input is dynamic ("need profile", 8.5.3).
inline void add_profile_for_values(nvinfer1::IBuilder& builder, nvinfer1::INetworkDefinition& network,
                                   nvinfer1::IBuilderConfig& config) {
#if WATUS_API < 1100 && !WATUS_RTX
  bool needed = false;
  for (int32_t i = 0; i < network.getNbLayers(); ++i) {
    auto const type = network.getLayer(i)->getType();
    needed |= type == nvinfer1::LayerType::kNON_ZERO || type == nvinfer1::LayerType::kNMS;
  }
  if (!needed) {
    return;
  }
  auto* profile = builder.createOptimizationProfile();
  for (int32_t i = 0; i < network.getNbInputs(); ++i) {
    auto const& input = *network.getInput(i);
    using Select = nvinfer1::OptProfileSelector;
    for (auto const select : {Select::kMIN, Select::kOPT, Select::kMAX}) {
      profile->setDimensions(input.getName(), select, input.getDimensions());
    }
  }
  config.addOptimizationProfile(profile);
#else
  (void)builder;
  (void)network;
  (void)config;
#endif
}

// A timing cache remembers the fastest kernel of every layer; RTX chooses kernels at load time and has none.
inline void attach_timing_cache(nvinfer1::IBuilderConfig& config, void const* data, size_t size,
                                Owned<nvinfer1::ITimingCache>& cache) {
#if !WATUS_RTX
  cache.reset(config.createTimingCache(data, size));
  if (!cache && size > 0) {  // of another TensorRT or GPU: start a new one
    cache.reset(config.createTimingCache(nullptr, 0));
  }
  if (cache) {
    config.setTimingCache(*cache, true);
  }
#else
  (void)config;
  (void)data;
  (void)size;
  (void)cache;
#endif
}

#if WATUS_API >= 901
inline std::string node_of(nvonnxparser::IParserError const& error) {
  std::string name = error.nodeName() ? error.nodeName() : "";
  std::string op = error.nodeOperator() ? error.nodeOperator() : "";
  if (op.empty() && name.empty()) {
    return {};
  }
  return "node '" + name + "' (" + (op.empty() ? "unknown op" : op) + ")";
}
#else
// Before 9.1 the parser knows only the node's index; the caller looks its name up (onnx::Model::name_nodes).
inline std::string node_of(nvonnxparser::IParserError const& error) {
  return error.node() < 0 ? std::string{} : "node #" + std::to_string(error.node());
}
#endif

// RTX ignores the kTF32 flag: 1.6.1 rounds to TF32 with the flag cleared (measured on an H100). It obeys
// NVIDIA_TF32_OVERRIDE, read when it builds and when it creates a context, and refuses a context where the two differ.
// TensorRT proper obeys the flag and is left alone. Changes the environment, so no other thread may read it meanwhile.
class Tf32Scope {
 public:
  explicit Tf32Scope(bool allowed) {
    if (!is_rtx) {
      return;
    }
    if (char const* value = std::getenv(name)) {
      before_ = value;
      was_set_ = true;
    }
    if (allowed) {
      unsetenv(name);
    } else {
      setenv(name, "0", 1);
    }
  }
  ~Tf32Scope() {
    if (!is_rtx) {
      return;
    }
    if (was_set_) {
      setenv(name, before_.c_str(), 1);
    } else {
      unsetenv(name);
    }
  }
  Tf32Scope(Tf32Scope const&) = delete;
  Tf32Scope& operator=(Tf32Scope const&) = delete;

 private:
  static constexpr char const* name = "NVIDIA_TF32_OVERRIDE";
  std::string before_;
  bool was_set_ = false;
};

// RTX compiles an engine's kernels when it is loaded and first run, about a second for each; others do when they build.
// What was compiled for the engines of one model is kept together, and can be carried over to another process.
class KernelCache {
 public:
  explicit KernelCache(std::string before) : before_(std::move(before)) {}

#if WATUS_RTX
  void attach(nvinfer1::IRuntimeConfig& config) {
    if (!cache_) {
      cache_.reset(config.createRuntimeCache());
      if (cache_ && !before_.empty()) {
        cache_->deserialize(before_.data(), before_.size());  // what is not of this library, GPU and driver is left out
      }
      before_.clear();
    }
    if (cache_) {
      config.setRuntimeCache(*cache_);
    }
  }

  std::string bytes() const {
    Owned<nvinfer1::IHostMemory> const bytes(cache_ ? cache_->serialize() : nullptr);
    return bytes ? std::string(static_cast<char const*>(bytes->data()), bytes->size()) : std::string();
  }
#else
  // Nothing is compiled at run time.
  std::string bytes() const { return {}; }
#endif

 private:
  std::string before_;
#if WATUS_RTX
  Owned<nvinfer1::IRuntimeCache> cache_;
#endif
};

inline Owned<nvinfer1::IExecutionContext> new_context(nvinfer1::ICudaEngine& engine, bool shared_scratch,
                                                      KernelCache* kernels) {
#if WATUS_API >= 1001
  using Strategy = nvinfer1::ExecutionContextAllocationStrategy;
  auto const strategy = shared_scratch ? Strategy::kUSER_MANAGED : Strategy::kSTATIC;
#endif
#if WATUS_RTX
  if (kernels) {
    Owned<nvinfer1::IRuntimeConfig> const config(engine.createRuntimeConfig());
    if (config) {
      kernels->attach(*config);
      config->setExecutionContextAllocationStrategy(strategy);
      return Owned<nvinfer1::IExecutionContext>(engine.createExecutionContext(config.get()));
    }
  }
#else
  (void)kernels;
#endif
#if WATUS_API >= 1001
  return Owned<nvinfer1::IExecutionContext>(engine.createExecutionContext(strategy));
#else
  return Owned<nvinfer1::IExecutionContext>(shared_scratch ? engine.createExecutionContextWithoutDeviceMemory()
                                                           : engine.createExecutionContext());
#endif
}

// A plan of unknown origin may have been built the other way, so that is tried too. RTX also remembers the setting of
// the first context: a process that loads both kinds computes both without TF32.
inline Owned<nvinfer1::IExecutionContext> create_context(nvinfer1::ICudaEngine& engine, bool tf32, bool shared_scratch,
                                                         KernelCache* kernels) {
  {
    Tf32Scope const expected(tf32);
    auto context = new_context(engine, shared_scratch, kernels);
    if (context || !is_rtx) {
      return context;
    }
  }
  Tf32Scope const other(!tf32);
  return new_context(engine, shared_scratch, kernels);
}

// Memory for an output whose size depends on values: as much as it can need, and the shape that it had at last.
class Room final : public nvinfer1::IOutputAllocator {
 public:
  Room(void* memory, uint64_t bytes) : memory_(memory), bytes_(bytes) {}

#if WATUS_API >= 1100 || WATUS_RTX
  void* reallocateOutputAsync(char const*, void*, uint64_t size, uint64_t, cudaStream_t) noexcept override {
    return give(size);
  }
#else
  void* reallocateOutput(char const*, void*, uint64_t size, uint64_t) noexcept override { return give(size); }
#endif
  void notifyShape(char const*, nvinfer1::Dims const& dims) noexcept override { shape_ = dims; }
  nvinfer1::Dims const& shape() const { return shape_; }

 private:
  void* give(uint64_t size) const { return size <= bytes_ ? memory_ : nullptr; }

  void* memory_;
  uint64_t bytes_;
  nvinfer1::Dims shape_{-1, {}};
};

inline int64_t scratch_bytes(nvinfer1::ICudaEngine const& engine) {
#if WATUS_API >= 1001
  return engine.getDeviceMemorySizeV2();
#else
  return static_cast<int64_t>(engine.getDeviceMemorySize());
#endif
}

inline void set_scratch(nvinfer1::IExecutionContext& context, void* memory, int64_t bytes) {
#if WATUS_API >= 1001
  context.setDeviceMemoryV2(memory, bytes);
#else
  (void)bytes;
  context.setDeviceMemory(memory);
#endif
}

}  // namespace watus::compat
