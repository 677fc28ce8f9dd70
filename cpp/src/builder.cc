// ONNX file in, serialized engine out.
#include "internal.h"
#include "watus-shim/src/bridge.rs.h"

namespace watus {
namespace {

using compat::Owned;

#if WATUS_API >= 900
// Called from TensorRT's builder threads; a false from step_complete cancels the build.
class Monitor final : public nvinfer1::IProgressMonitor {
 public:
  explicit Monitor(BuildObserver const& observer) : observer_(observer) {}

  void phaseStart(char const* phase, char const* /*parent*/, int32_t steps) noexcept override {
    observer_.phase_start(rust::String::lossy(phase), steps);
  }
  bool stepComplete(char const* phase, int32_t step) noexcept override {
    return observer_.step_complete(rust::String::lossy(phase), step);
  }
  void phaseFinish(char const* phase) noexcept override { observer_.phase_finish(rust::String::lossy(phase)); }

 private:
  BuildObserver const& observer_;
};
#endif

nvinfer1::Dims dims(rust::Vec<int64_t> const& values) {
  nvinfer1::Dims out{};
  if (values.size() > nvinfer1::Dims::MAX_DIMS) {
    throw std::runtime_error("more than " + std::to_string(nvinfer1::Dims::MAX_DIMS) + " dimensions");
  }
  out.nbDims = static_cast<int32_t>(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    out.d[i] = static_cast<compat::DimsValue>(values[i]);
  }
  return out;
}

void parse(nvonnxparser::IParser& parser, std::string const& path) {
  if (parser.parseFromFile(path.c_str(), static_cast<int>(nvinfer1::ILogger::Severity::kWARNING))) {
    return;
  }
  std::string text = "TensorRT cannot read " + path;
  for (int32_t i = 0; i < parser.getNbErrors(); ++i) {
    auto const& error = *parser.getError(i);
    auto const node = compat::node_of(error);
    text += "\n  " + (node.empty() ? std::string("model") : node) + ": " + (error.desc() ? error.desc() : "?");
  }
  if (parser.getNbErrors() == 0) {
    logger().fail(text);
  }
  throw std::runtime_error(text);
}

void add_profile(nvinfer1::IBuilder& builder, nvinfer1::INetworkDefinition& network, nvinfer1::IBuilderConfig& config,
                 BuildOptions const& options) {
  if (options.profile.empty()) {
    compat::add_profile_for_values(builder, network, config);
    return;
  }
  auto* profile = builder.createOptimizationProfile();
  for (auto const& range : options.profile) {
    auto const name = std::string(range.name);
    using Select = nvinfer1::OptProfileSelector;
    bool const ok = profile->setDimensions(name.c_str(), Select::kMIN, dims(range.min)) &&
                    profile->setDimensions(name.c_str(), Select::kOPT, dims(range.opt)) &&
                    profile->setDimensions(name.c_str(), Select::kMAX, dims(range.max));
    if (!ok) {
      logger().fail("TensorRT refused the shape range of input '" + name + "'");
    }
  }
  if (config.addOptimizationProfile(profile) < 0) {
    logger().fail("TensorRT refused the optimization profile");
  }
}

void configure(nvinfer1::IBuilder& builder, nvinfer1::INetworkDefinition& network, nvinfer1::IBuilderConfig& config,
               BuildOptions const& options) {
  if (options.workspace_bytes > 0) {
    config.setMemoryPoolLimit(nvinfer1::MemoryPoolType::kWORKSPACE, options.workspace_bytes);
  }
  if (!options.tf32) {
    config.clearFlag(nvinfer1::BuilderFlag::kTF32);
  }
  compat::set_precision_flags(config, options.fp16, options.obey_precision_constraints);
  if (options.optimization_level >= 0) {
    compat::set_optimization_level(config, options.optimization_level);
  }
  auto const total = static_cast<int32_t>(options.compute_capabilities.size());
  for (int32_t i = 0; i < total; ++i) {
    compat::add_compute_capability(config, std::string(options.compute_capabilities[i]), i, total);
  }
  if (options.detailed_profiling) {
    config.setProfilingVerbosity(nvinfer1::ProfilingVerbosity::kDETAILED);
  }
  compat::leave_out_missing_libraries(config);
  add_profile(builder, network, config, options);
}

}  // namespace

struct Plan::Parts {
  Owned<nvinfer1::IHostMemory> plan;
  Owned<nvinfer1::IHostMemory> timing_cache;
};

Plan::Plan(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Plan::~Plan() = default;

namespace {
rust::Slice<uint8_t const> view(Owned<nvinfer1::IHostMemory> const& memory) {
  if (!memory) {
    return {};
  }
  return {static_cast<uint8_t const*>(memory->data()), memory->size()};
}
}  // namespace

rust::Slice<uint8_t const> Plan::bytes() const { return view(parts_->plan); }
rust::Slice<uint8_t const> Plan::timing_cache() const { return view(parts_->timing_cache); }

std::unique_ptr<Plan> build_plan(Library const& library, BuildOptions const& options, BuildObserver const& observer) {
  auto& log = logger();
  log.clear();
  compat::Tf32Scope const tf32(options.tf32);
  Owned<nvinfer1::IBuilder> builder(
      static_cast<nvinfer1::IBuilder*>(library.symbols().create_builder(&log, NV_TENSORRT_VERSION)));
  if (!builder) {
    log.fail("TensorRT cannot create a builder (is the GPU usable by this user?)");
  }
  Owned<nvinfer1::INetworkDefinition> network(builder->createNetworkV2(compat::network_flags(options.strongly_typed)));
  if (!network) {
    log.fail("TensorRT cannot create a network");
  }
  Owned<nvonnxparser::IParser> parser(static_cast<nvonnxparser::IParser*>(
      library.symbols().create_parser(network.get(), &log, NV_ONNX_PARSER_VERSION)));
  if (!parser) {
    log.fail("TensorRT cannot create an ONNX parser");
  }
  parse(*parser, std::string(options.onnx_path));
  std::set<std::string> full;
  for (auto const& name : options.full_layers) {
    full.insert(std::string(name));
  }
  compat::hold_in_full(*network, full);

  Owned<nvinfer1::IBuilderConfig> config(builder->createBuilderConfig());
  if (!config) {
    log.fail("TensorRT cannot create a builder configuration");
  }
  configure(*builder, *network, *config, options);
  Owned<nvinfer1::ITimingCache> cache;
  compat::attach_timing_cache(*config, options.timing_cache.data(), options.timing_cache.size(), cache);
#if WATUS_API >= 900
  Monitor monitor(observer);
  config->setProgressMonitor(&monitor);
#else
  (void)observer;
#endif

  auto parts = std::make_unique<Plan::Parts>();
  parts->plan.reset(builder->buildSerializedNetwork(*network, *config));
  if (!parts->plan || parts->plan->size() == 0) {
    log.fail("TensorRT could not build the engine");
  }
  if (cache) {
    parts->timing_cache.reset(cache->serialize());
  }
  return std::make_unique<Plan>(std::move(parts));
}

}  // namespace watus
