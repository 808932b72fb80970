// A device of torch for tests: another device than the CPU to everybody who looks, computed by the CPU's kernels.
//
// Its memory is plain host memory under another device type (PrivateUse1). Every operator without a kernel of its own
// below runs the CPU's on CPU tensors that share the device tensors' memory, so that views, in-place and out= work.
// What CUDA refuses is refused: tensors of both kinds in one call, but for CPU scalars and CPU indices where CUDA takes
// them; random numbers from a CPU generator; products of integer matrices. What passes between host and device is
// counted.

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_thnn_differentiable_lstm_cell_backward.h>
#include <ATen/ops/allclose.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/convolution.h>
#include <ATen/ops/convolution_backward.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <array>
#include <atomic>
#include <cmath>
#include <mutex>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

namespace {

using at::Tensor;
using c10::DeviceType;
using c10::Storage;
using OptionalTensor = std::optional<Tensor>;

const c10::Device kDevice(DeviceType::PrivateUse1, 0);
const c10::DispatchKeySet kDeviceKey(c10::DispatchKey::PrivateUse1);
const c10::DispatchKeySet kCpuKey(c10::DispatchKey::CPU);

// Traffic -------------------------------------------------------------------------------------------------------------

enum Count { kScalars, kToHost, kToHostBytes, kToDevice, kToDeviceBytes, kNonBlocking, kWaits, kLaunches, kNumCounts };
std::array<std::atomic<int64_t>, kNumCounts> counts{};

void count_copy_to_device(const Tensor& tensor) {
  counts[kToDevice] += 1;
  counts[kToDeviceBytes] += static_cast<int64_t>(tensor.nbytes());
}

// Memory --------------------------------------------------------------------------------------------------------------

void drop_storage(void* held) {
  delete static_cast<Storage*>(held);
}

// The same memory under the name of another device, alive as long as either is.
c10::DataPtr shared(const Storage& storage, c10::Device device) {
  auto* held = new Storage(storage);
  return {storage.mutable_data(), held, &drop_storage, device};
}

struct DeviceAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    auto memory = c10::GetCPUAllocator()->allocate(nbytes);
    auto deleter = memory.get_deleter();
    void *data = memory.get(), *context = memory.release_context();
    return {data, context, deleter, kDevice};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return c10::GetCPUAllocator()->raw_deleter();
  }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }
};

DeviceAllocator allocator;
REGISTER_ALLOCATOR(DeviceType::PrivateUse1, &allocator)

// Host memory from which real devices copy without waiting; here only remembered to be such.
struct PinnedAllocator final : c10::Allocator {
  static std::mutex mutex;
  static std::unordered_set<const void*> pinned;

  static void forget(void* data) {
    {
      std::lock_guard<std::mutex> guard(mutex);
      pinned.erase(data);
    }
    c10::GetCPUAllocator()->raw_deleter()(data);
  }
  c10::DataPtr allocate(size_t nbytes) override {
    void* data = c10::GetCPUAllocator()->raw_allocate(nbytes);
    std::lock_guard<std::mutex> guard(mutex);
    pinned.insert(data);
    return {data, data, &forget, c10::Device(DeviceType::CPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override {
    return &forget;
  }
  void copy_data(void* to, const void* from, size_t nbytes) const override {
    default_copy_data(to, from, nbytes);
  }
};

std::mutex PinnedAllocator::mutex;
std::unordered_set<const void*> PinnedAllocator::pinned;
PinnedAllocator pinned_allocator;

// With the sizes and strides of another tensor, over other memory.
Tensor shaped_like(Tensor made, const Tensor& like) {
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

Tensor tensor_over(Storage storage, c10::DispatchKeySet keys, const Tensor& like) {
  return shaped_like(at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, like.dtype()), like);
}

// What is a tensor for inference and what is not goes by what it is a view of.
Tensor view_of(const Tensor& base, const Tensor& like) {
  return shaped_like(at::detail::make_tensor<c10::TensorImpl>(c10::TensorImpl::VIEW, Storage(base.storage()),
                                                              base.key_set(), like.dtype()),
                     like);
}

Storage renamed(const Storage& storage, c10::Device device, c10::Allocator* owner) {
  return Storage(Storage::use_byte_size_t(), storage.nbytes(), shared(storage, device), owner, /*resizable=*/true);
}

bool is_ours(const Tensor& tensor) {
  return tensor.defined() && tensor.device().type() == DeviceType::PrivateUse1;
}

[[noreturn]] void refuse_mixture(const std::string& name, const Tensor& tensor) {
  TORCH_CHECK(false, "Expected all tensors to be on the same device, but found at least two devices, ", kDevice,
              " and ", tensor.device(), "! (when checking arguments of ", name, ")");
}

// The random numbers of the device are its own: seeded together with the CPU's, another stream.
std::mutex generator_mutex;
at::Generator device_generator = at::detail::createCPUGenerator(0);

// Copies that nobody waits for (`non_blocking`, pinned host memory) are done some time before the host next waits for
// the device. Until then what comes to the host holds rubbish, and what goes to the device must be left as it was.

struct Underway {
  Tensor host, content;
  bool is_to_host;
};

std::mutex underway_mutex;
std::vector<Underway> underway;

void begin_copy(const Tensor& host, const Tensor& content, bool is_to_host) {
  std::lock_guard<std::mutex> guard(underway_mutex);
  counts[kNonBlocking] += 1;
  underway.push_back({host, content.clone(), is_to_host});
  if (!is_to_host) return;
  if (host.is_floating_point()) {
    host.fill_(NAN);
  } else {
    host.fill_(113);
  }
}

void finish_copies() {
  std::vector<Underway> finished;
  {
    std::lock_guard<std::mutex> guard(underway_mutex);
    finished.swap(underway);
  }
  at::AutoDispatchBelowADInplaceOrView below;
  for (auto& copy : finished) {
    if (copy.is_to_host) {
      copy.host.copy_(copy.content);
    } else {
      TORCH_CHECK(copy.host.allclose(copy.content, 0.0, 0.0, /*equal_nan=*/true),
                  "host memory was written while a non-blocking copy of it to ", kDevice, " was under way");
    }
  }
}

void wait_for_the_device() {
  counts[kWaits] += 1;
  finish_copies();
}

// Operators without a kernel of their own -----------------------------------------------------------------------------

// What CUDA computes from a 0-dimensional CPU tensor beside its own.
const std::unordered_set<std::string> kTakeCpuScalars = {
    "add", "add_", "sub", "sub_", "rsub", "mul", "mul_", "div", "div_", "true_divide", "floor_divide",
    "floor_divide_", "remainder", "remainder_", "fmod", "fmod_", "pow", "pow_", "atan2", "atan2_", "hypot", "eq",
    "eq_", "ne", "ne_", "lt", "lt_", "le", "le_", "gt", "gt_", "ge", "ge_", "logical_and", "logical_and_",
    "logical_or", "logical_or_", "logical_xor", "logical_xor_", "bitwise_and", "bitwise_and_", "bitwise_or",
    "bitwise_or_", "bitwise_xor", "bitwise_xor_", "maximum", "minimum", "fmax", "fmin", "where", "xlogy", "copysign",
    "addcmul", "addcmul_", "addcdiv", "addcdiv_", "masked_fill", "masked_fill_", "index_fill", "index_fill_",
    "fill_", "_index_put_impl_"};
const std::unordered_set<std::string> kTakeCpuIndices = {"index", "_unsafe_index", "_index_put_impl_"};
const std::unordered_set<std::string> kMultiplyNoIntegers = {"mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"};
// How large their result is, or what it is, the host has to be told before it can go on.
const std::unordered_set<std::string> kMakeTheHostWait = {
    "nonzero", "masked_select", "equal", "_unique", "_unique2", "unique_dim", "unique_consecutive", "bincount",
    "repeat_interleave"};

// One call of an operator: its arguments as CPU tensors over the same memory, and the way back.
class Call {
 public:
  explicit Call(std::string name) : name_(std::move(name)) {}

  Tensor alias(const Tensor& tensor) {
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (!alias_of_.count(storage)) {
      auto made = renamed(tensor.storage(), DeviceType::CPU, c10::GetCPUAllocator());
      original_of_.emplace(made.unsafeGetStorageImpl(), tensor);
      alias_of_.emplace(storage, std::move(made));
    }
    auto made = tensor_over(alias_of_.at(storage), kCpuKey, tensor);
    pairs_.emplace_back(tensor, made);
    return made;
  }

  // A tensor of the CPU as a tensor of the device: an argument itself, a view of one, or a new one.
  Tensor original(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    for (auto& pair : pairs_) {
      if (pair.second.is_same(tensor)) return pair.first;
    }
    auto* storage = tensor.storage().unsafeGetStorageImpl();
    if (!original_of_.count(storage)) {
      launches_ = true;
      auto made = tensor_over(renamed(tensor.storage(), kDevice, &allocator), kDeviceKey, tensor);
      original_of_.emplace(storage, made);
      return made;
    }
    return view_of(original_of_.at(storage), tensor);
  }

  // Arguments that the kernel gave another size, and maybe other memory for it.
  void follow_resizes() {
    for (auto& [original, alias] : pairs_) {
      auto* ours = original.storage().unsafeGetStorageImpl();
      const Storage& theirs = alias.storage();
      if (!theirs.is_alias_of(alias_of_.at(ours))) {
        TORCH_CHECK(false, name_, " gave a tensor of ", kDevice, " another storage, which is not supported");
      }
      if (ours->data() != theirs.data() || ours->nbytes() != theirs.nbytes()) {
        ours->set_data_ptr_noswap(shared(theirs, kDevice));
        ours->set_nbytes(theirs.nbytes());
      }
      if (original.sizes() != alias.sizes() || original.strides() != alias.strides() ||
          original.storage_offset() != alias.storage_offset()) {
        original.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
      }
    }
  }

  Tensor argument(const Tensor& tensor, bool is_written, bool is_index) {
    if (!tensor.defined()) return tensor;
    if (is_ours(tensor)) {
      TORCH_CHECK(at::isFloatingType(tensor.scalar_type()) || !kMultiplyNoIntegers.count(name_), name_,
                  " is not implemented for ", tensor.scalar_type(), " on ", kDevice);
      launches_ = launches_ || is_written;
      const bool is_mask = tensor.scalar_type() == at::kBool || tensor.scalar_type() == at::kByte;
      if (is_index && is_mask && kTakeCpuIndices.count(name_)) wait_for_the_device();
      return alias(tensor);
    }
    const bool is_cpu = tensor.device().type() == DeviceType::CPU;
    if (is_cpu && is_index && kTakeCpuIndices.count(name_)) {
      count_copy_to_device(tensor);
      return tensor;
    }
    if (is_cpu && !is_written && tensor.dim() == 0 && kTakeCpuScalars.count(name_)) return tensor;
    refuse_mixture(name_, tensor);
  }

  bool launches() const {
    return launches_;
  }

 private:
  std::string name_;
  bool launches_ = false;
  std::vector<std::pair<Tensor, Tensor>> pairs_;
  std::unordered_map<c10::StorageImpl*, Storage> alias_of_;   // by storage of the device
  std::unordered_map<c10::StorageImpl*, Tensor> original_of_;  // by storage of the CPU
};

c10::IValue argument(Call& call, const c10::IValue& value, const c10::Argument& declared) {
  const bool is_written = declared.alias_info() != nullptr && declared.alias_info()->isWrite();
  if (value.isTensor()) return call.argument(value.toTensor(), is_written, false);
  if (value.isTensorList()) {
    c10::List<Tensor> list;
    for (const Tensor& tensor : value.toTensorVector()) list.push_back(call.argument(tensor, is_written, false));
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<OptionalTensor> list;
    for (const OptionalTensor& tensor : value.toOptionalTensorVector()) {
      list.push_back(tensor.has_value() ? OptionalTensor(call.argument(*tensor, is_written, true)) : tensor);
    }
    return list;
  }
  if (value.isDevice() && value.toDevice().type() == DeviceType::PrivateUse1) return c10::Device(DeviceType::CPU);
  if (value.isGenerator()) {
    TORCH_CHECK(false, "Expected a '", kDevice.str(), "' device type for generator but found '",
                value.toGenerator().device(), "'");
  }
  if (value.isNone() && declared.name() == "generator") return device_generator;
  return value;
}

c10::IValue result(Call& call, const c10::IValue& value) {
  if (value.isTensor()) return call.original(value.toTensor());
  if (!value.isTensorList()) return value;
  c10::List<Tensor> list;
  for (const Tensor& tensor : value.toTensorVector()) list.push_back(call.original(tensor));
  return list;
}

void run_on_the_same_memory(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::string name = schema.name().substr(schema.name().find("::") + 2);
  Call call(name);
  const size_t begin = stack->size() - schema.arguments().size();
  for (size_t i = 0; i < schema.arguments().size(); ++i) {
    (*stack)[begin + i] = argument(call, (*stack)[begin + i], schema.arguments()[i]);
  }
  {
    at::AutoDispatchBelowADInplaceOrView below;
    op.redispatchBoxed(kCpuKey, stack);
  }
  call.follow_resizes();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) {
    (*stack)[i] = result(call, (*stack)[i]);
  }
  counts[kLaunches] += call.launches();
  if (kMakeTheHostWait.count(name)) wait_for_the_device();
}

// Operators with a kernel of their own --------------------------------------------------------------------------------

Tensor empty(c10::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
             std::optional<at::Device>, std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &allocator, kDeviceKey, c10::dtype_or_default(dtype), format);
}

Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, std::optional<at::ScalarType> dtype,
                     std::optional<at::Layout>, std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &allocator, kDeviceKey, c10::dtype_or_default(dtype));
}

// Between host and device, either way, and on the device.
Tensor copy_from(const Tensor& source, const Tensor& target, bool non_blocking) {
  Call call("copy_");
  at::AutoDispatchBelowADInplaceOrView below;
  const Tensor from = is_ours(source) ? call.alias(source) : source;
  if (!is_ours(target)) {
    counts[kToHost] += 1;
    counts[kToHostBytes] += static_cast<int64_t>(target.nbytes());
    if (non_blocking && target.is_pinned()) {
      begin_copy(target, from, true);
      return target;
    }
    finish_copies();
    target.copy_(from);
    return target;
  }
  call.alias(target).copy_(from);
  if (is_ours(source)) {
    counts[kLaunches] += 1;
    return target;
  }
  count_copy_to_device(target);
  if (non_blocking && source.is_pinned()) begin_copy(source, source, false);
  return target;
}

at::Scalar local_scalar_dense(const Tensor& tensor) {
  counts[kScalars] += 1;
  finish_copies();
  Call call("_local_scalar_dense");
  return at::_local_scalar_dense(call.alias(tensor));
}

Tensor& set_storage(Tensor& tensor, Storage source, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  TORCH_CHECK(source.device_type() == DeviceType::PrivateUse1, "Attempted to set the storage of a tensor on device \"",
              kDevice, "\" to a storage on different device \"", source.device(), "\".");
  auto* impl = tensor.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  if (stride.data() == nullptr) {
    impl->set_storage_offset(offset);
    impl->set_sizes_contiguous(size);
  } else {
    impl->set_sizes_and_strides(size, stride, offset);
  }
  return tensor;
}

Tensor& set_whole_storage(Tensor& tensor, Storage source) {
  const int64_t num_elements = static_cast<int64_t>(source.nbytes() / tensor.dtype().itemsize());
  return set_storage(tensor, std::move(source), 0, num_elements, {});
}

Tensor& set_tensor(Tensor& tensor, const Tensor& source) {
  return set_storage(tensor, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

Tensor convolution(const Tensor& input, const Tensor& weight, const OptionalTensor& bias, c10::IntArrayRef stride,
                   c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed,
                   c10::IntArrayRef output_padding, int64_t groups) {
  Call call("convolution");
  at::AutoDispatchBelowADInplaceOrView below;
  auto on_cpu = [&](const Tensor& tensor) { return call.argument(tensor, false, false); };
  OptionalTensor offset = bias.has_value() ? OptionalTensor(on_cpu(*bias)) : bias;
  counts[kLaunches] += 1;
  return call.original(at::convolution(on_cpu(input), on_cpu(weight), offset, stride, padding, dilation, transposed,
                                       output_padding, groups));
}

std::tuple<Tensor, Tensor, Tensor> convolution_backward(
    const Tensor& by_output, const Tensor& input, const Tensor& weight, c10::IntArrayRef stride,
    c10::IntArrayRef padding, c10::IntArrayRef dilation, bool transposed, c10::IntArrayRef output_padding,
    int64_t groups, std::array<bool, 3> wanted) {
  Call call("convolution_backward");
  at::AutoDispatchBelowADInplaceOrView below;
  auto on_cpu = [&](const Tensor& tensor) { return call.argument(tensor, false, false); };
  const int64_t num_outputs = transposed ? weight.size(1) * groups : weight.size(0);
  auto [by_input, by_weight, by_bias] =
      at::convolution_backward(on_cpu(by_output), on_cpu(input), on_cpu(weight), c10::IntArrayRef(num_outputs), stride,
                               padding, dilation, transposed, output_padding, groups, wanted);
  counts[kLaunches] += wanted[0] + wanted[1] + wanted[2];
  return {call.original(by_input), call.original(by_weight), call.original(by_bias)};
}

// torch has the cells of recurrent layers on devices fused, and leaves these four to the device.

Tensor with_bias(const Tensor& gates, const OptionalTensor& bias) {
  return bias.has_value() && bias->defined() ? gates + *bias : gates;
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell(const Tensor& of_input, const Tensor& of_state, const Tensor& cell,
                                             const OptionalTensor& input_bias, const OptionalTensor& state_bias) {
  Tensor gates = with_bias(of_input, input_bias) + with_bias(of_state, state_bias);
  auto parts = gates.chunk(4, 1);
  Tensor next = parts[1].sigmoid() * cell + parts[0].sigmoid() * parts[2].tanh();
  return {parts[3].sigmoid() * next.tanh(), next, gates};
}

std::tuple<Tensor, Tensor, Tensor> lstm_cell_backward(const OptionalTensor& by_output, const OptionalTensor& by_cell,
                                                      const Tensor& cell, const Tensor& next, const Tensor& gates,
                                                      bool has_bias) {
  auto [by_gates, same, by_previous, by_input_bias, by_state_bias] = at::_thnn_differentiable_lstm_cell_backward(
      by_output, by_cell, gates, at::zeros_like(gates), std::nullopt, std::nullopt, cell, next);
  return {by_gates, by_previous, has_bias ? by_gates.sum(0) : Tensor()};
}

std::tuple<Tensor, Tensor> gru_cell(const Tensor& of_input, const Tensor& of_state, const Tensor& state,
                                    const OptionalTensor& input_bias, const OptionalTensor& state_bias) {
  auto input = with_bias(of_input, input_bias).chunk(3, 1), hidden = with_bias(of_state, state_bias).chunk(3, 1);
  Tensor reset = (input[0] + hidden[0]).sigmoid(), update = (input[1] + hidden[1]).sigmoid();
  Tensor candidate = (input[2] + reset * hidden[2]).tanh();
  return {candidate + update * (state - candidate), at::cat({reset, update, candidate, state, hidden[2]}, 1)};
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> gru_cell_backward(const Tensor& by_output, const Tensor& workspace,
                                                                     bool has_bias) {
  auto saved = workspace.chunk(5, 1);
  const Tensor &reset = saved[0], &update = saved[1], &candidate = saved[2], &state = saved[3], &hidden = saved[4];
  Tensor by_candidate = by_output * (1 - update) * (1 - candidate * candidate);
  Tensor by_update = by_output * (state - candidate) * update * (1 - update);
  Tensor by_reset = by_candidate * hidden * reset * (1 - reset);
  Tensor by_input = at::cat({by_reset, by_update, by_candidate}, 1);
  Tensor by_hidden = at::cat({by_reset, by_update, by_candidate * reset}, 1);
  return {by_input, by_hidden, by_output * update, has_bias ? by_input.sum(0) : Tensor(),
          has_bias ? by_hidden.sum(0) : Tensor()};
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&run_on_the_same_memory>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("_copy_from", &copy_from);
  library.impl("_local_scalar_dense", &local_scalar_dense);
  library.impl("set_.source_Storage_storage_offset", &set_storage);
  library.impl("set_.source_Storage", &set_whole_storage);
  library.impl("set_.source_Tensor", &set_tensor);
  // Else torch would look where a mask is true before it comes here.
  library.impl("index.Tensor", torch::CppFunction::makeFromBoxedFunction<&run_on_the_same_memory>());
  library.impl("convolution_overrideable", &convolution);
  library.impl("convolution_backward_overrideable", &convolution_backward);
  library.impl("_thnn_fused_lstm_cell", &lstm_cell);
  library.impl("_thnn_fused_lstm_cell_backward_impl", &lstm_cell_backward);
  library.impl("_thnn_fused_gru_cell", &gru_cell);
  library.impl("_thnn_fused_gru_cell_backward", &gru_cell_backward);
}

// Mixed precision, by torch's own lists of operators as for CUDA.

#define MILLRACE_AUTOCAST_LOWER(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, lower_precision_fp)
#define MILLRACE_AUTOCAST_FP32(...) KERNEL_PRIVATEUSEONE(__VA_ARGS__, fp32)

TORCH_LIBRARY_IMPL(_, AutocastPrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFallthrough());
}

TORCH_LIBRARY_IMPL(aten, AutocastPrivateUse1, m) {
  AT_FORALL_LOWER_PRECISION_FP(MILLRACE_AUTOCAST_LOWER)
  AT_FORALL_FP32(MILLRACE_AUTOCAST_FP32)
}

// What torch asks of any device: one, with one stream, on which everything is done at once ----------------------------

struct DeviceGuard final : c10::impl::DeviceGuardImplInterface {
  const c10::Stream stream{c10::Stream::DEFAULT, kDevice};

  DeviceType type() const override { return DeviceType::PrivateUse1; }
  c10::Device exchangeDevice(c10::Device) const override { return kDevice; }
  c10::Device getDevice() const override { return kDevice; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  c10::Stream getStream(c10::Device) const override { return stream; }
  c10::Stream getDefaultStream(c10::Device) const override { return stream; }
  c10::Stream getStreamFromGlobalPool(c10::Device, bool) const override { return stream; }
  c10::Stream getNewStream(c10::Device, int) const override { return stream; }
  c10::Stream exchangeStream(c10::Stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override { wait_for_the_device(); }
  void synchronizeEvent(void*) const override { wait_for_the_device(); }
  void synchronizeDevice(const c10::DeviceIndex) const override { wait_for_the_device(); }
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, DeviceGuard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return 1; }
  void setCurrentDevice(c10::DeviceIndex) const override {}
  c10::DeviceIndex getCurrentDevice() const override { return 0; }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex) const override { return 0; }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator; }
  bool isPinnedPtr(const void* data) const override {
    std::lock_guard<std::mutex> guard(PinnedAllocator::mutex);
    return PinnedAllocator::pinned.count(data) > 0;
  }
  void resizePrivateUse1Bytes(const Storage& storage, size_t nbytes) const override {
    auto memory = allocator.allocate(nbytes);
    allocator.copy_data(memory.get(), storage.data(), std::min(nbytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(memory));
    storage.unsafeGetStorageImpl()->set_nbytes(nbytes);
  }
};

struct RegisterHooks {
  RegisterHooks() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
} register_hooks;

}  // namespace

// For Python, by ctypes.
extern "C" {

int simulated_num_counts() {
  return kNumCounts;
}

void simulated_read_counts(int64_t* into) {
  for (int i = 0; i < kNumCounts; ++i) into[i] = counts[i].load();
}

void simulated_reset_counts() {
  for (auto& count : counts) count = 0;
}

void simulated_synchronize() {
  wait_for_the_device();
}

void simulated_seed(uint64_t seed) {
  std::lock_guard<std::mutex> guard(generator_mutex);
  device_generator.set_current_seed(seed);
}
}
