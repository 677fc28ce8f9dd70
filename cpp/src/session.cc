// A serialized engine on the GPU: its inputs and outputs, and one enqueue at a time.
#include <algorithm>
#include <iterator>
#include <map>

#include "internal.h"
#include "watus-shim/src/bridge.rs.h"

namespace watus {
namespace {

using compat::Owned;

rust::Vec<int64_t> shape_of(nvinfer1::Dims const& dims) {
  rust::Vec<int64_t> out;
  for (int32_t i = 0; i < dims.nbDims; ++i) {
    out.push_back(static_cast<int64_t>(dims.d[i]));
  }
  return out;
}

}  // namespace

// Members are destroyed bottom up: context, rooms, engine, runtime.
struct Session::Parts {
  Owned<nvinfer1::IRuntime> runtime;
  Owned<nvinfer1::ICudaEngine> engine;
  std::map<std::string, std::unique_ptr<compat::Room>> rooms;
  Owned<nvinfer1::IExecutionContext> context;
};

Session::Session(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Session::~Session() = default;

struct KernelCache::Parts {
  compat::KernelCache kernels;
};

KernelCache::KernelCache(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
KernelCache::~KernelCache() = default;

std::unique_ptr<KernelCache> new_kernel_cache(rust::Slice<uint8_t const> before) {
  std::string bytes(reinterpret_cast<char const*>(before.data()), before.size());
  return std::make_unique<KernelCache>(
      std::unique_ptr<KernelCache::Parts>(new KernelCache::Parts{compat::KernelCache(std::move(bytes))}));
}

rust::Vec<uint8_t> KernelCache::bytes() const {
  auto const bytes = parts_->kernels.bytes();
  rust::Vec<uint8_t> out;
  out.reserve(bytes.size());
  std::copy(bytes.begin(), bytes.end(), std::back_inserter(out));
  return out;
}

namespace {

std::unique_ptr<Session> load(Library const& library, rust::Slice<uint8_t const> plan, bool tf32, bool shared_scratch,
                              compat::KernelCache* kernels) {
  auto parts = std::make_unique<Session::Parts>();
  auto& log = logger();
  log.clear();
  parts->runtime.reset(static_cast<nvinfer1::IRuntime*>(library.symbols().create_runtime(&log, NV_TENSORRT_VERSION)));
  if (!parts->runtime) {
    log.fail("TensorRT cannot create a runtime");
  }
  parts->engine.reset(parts->runtime->deserializeCudaEngine(plan.data(), plan.size()));
  if (!parts->engine) {
    log.fail("TensorRT cannot load the engine");
  }
  parts->context = compat::create_context(*parts->engine, tf32, shared_scratch, kernels);
  if (!parts->context) {
    log.fail("TensorRT cannot create an execution context");
  }
  return std::make_unique<Session>(std::move(parts));
}

}  // namespace

std::unique_ptr<Session> load_plan(Library const& library, rust::Slice<uint8_t const> plan, bool tf32) {
  return load(library, plan, tf32, false, nullptr);
}

std::unique_ptr<Session> load_plan_with(Library const& library, rust::Slice<uint8_t const> plan, bool tf32,
                                        KernelCache& kernels) {
  return load(library, plan, tf32, true, &kernels.parts().kernels);
}

rust::Vec<IoTensor> Session::io() const {
  auto const& engine = *parts_->engine;
  rust::Vec<IoTensor> out;
  for (int32_t i = 0; i < engine.getNbIOTensors(); ++i) {
    char const* name = engine.getIOTensorName(i);
    bool const input = engine.getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
    // DataType only ever grew: its numbers mean the same in every version (DTYPES in src/backend/tensorrt/session.rs).
    auto const dtype = static_cast<int32_t>(engine.getTensorDataType(name));
    out.push_back({rust::String(name), input, dtype, shape_of(engine.getTensorShape(name))});
  }
  return out;
}

rust::Vec<int64_t> Session::tensor_shape(rust::Str name) const {
  return shape_of(parts_->context->getTensorShape(to_string(name).c_str()));
}

void Session::bind(rust::Str name, rust::Slice<int64_t const> dims, size_t device_pointer) {
  auto const tensor = to_string(name);
  auto const mode = parts_->engine->getTensorIOMode(tensor.c_str());
  logger().clear();
  if (mode == nvinfer1::TensorIOMode::kINPUT) {
    nvinfer1::Dims shape{};
    if (dims.size() > nvinfer1::Dims::MAX_DIMS) {
      throw std::runtime_error("input '" + tensor + "' has too many dimensions");
    }
    shape.nbDims = static_cast<int32_t>(dims.size());
    for (size_t i = 0; i < dims.size(); ++i) {
      shape.d[i] = static_cast<compat::DimsValue>(dims[i]);
    }
    if (!parts_->context->setInputShape(tensor.c_str(), shape)) {
      logger().fail("TensorRT refused the shape of input '" + tensor + "'");
    }
  }
  set_address(name, device_pointer);
}

void Session::set_address(rust::Str name, size_t device_pointer) {
  auto const tensor = to_string(name);
  if (!parts_->context->setTensorAddress(tensor.c_str(), reinterpret_cast<void*>(device_pointer))) {
    logger().fail("TensorRT refused the address of tensor '" + tensor + "'");
  }
}

int64_t Session::most_bytes(rust::Str name) const { return parts_->context->getMaxOutputSize(to_string(name).c_str()); }

void Session::give_room(rust::Str name, size_t device_pointer, uint64_t bytes) {
  set_address(name, device_pointer);
  auto const tensor = to_string(name);
  auto room = std::make_unique<compat::Room>(reinterpret_cast<void*>(device_pointer), bytes);
  if (!parts_->context->setOutputAllocator(tensor.c_str(), room.get())) {
    logger().fail("TensorRT refused the memory of output '" + tensor + "'");
  }
  parts_->rooms[tensor] = std::move(room);  // the context knows the new one, so the old one may go
}

rust::Vec<int64_t> Session::written_shape(rust::Str name) const {
  auto const room = parts_->rooms.find(to_string(name));
  return room == parts_->rooms.end() ? tensor_shape(name) : shape_of(room->second->shape());
}

int64_t Session::scratch_bytes() const { return compat::scratch_bytes(*parts_->engine); }

void Session::set_scratch(size_t device_pointer, int64_t bytes) {
  compat::set_scratch(*parts_->context, reinterpret_cast<void*>(device_pointer), bytes);
}

void Session::enqueue(size_t stream) {
  if (!parts_->context->enqueueV3(reinterpret_cast<cudaStream_t>(stream))) {
    logger().fail("TensorRT could not run the engine");
  }
}

rust::String Session::inspect() const {
  Owned<nvinfer1::IEngineInspector> inspector(parts_->engine->createEngineInspector());
  if (!inspector) {
    logger().fail("TensorRT cannot inspect the engine");
  }
  inspector->setExecutionContext(parts_->context.get());
  char const* text = inspector->getEngineInformation(nvinfer1::LayerInformationFormat::kJSON);
  return rust::String::lossy(text ? text : "{}");
}

}  // namespace watus
