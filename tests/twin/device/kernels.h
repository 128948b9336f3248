// What the dispatcher finds for a tensor of the device: making and viewing here, collectives, and for all else the CPU's kernel.
#pragma once
#include <ATen/EmptyTensor.h>
#include <ATen/native/TensorFactories.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_native.h>
#include <torch/csrc/distributed/c10d/ProcessGroup.hpp>
#include <torch/library.h>

#include <set>

#include "alias.h"

namespace twin {

using Stack = torch::jit::Stack;
constexpr c10::DispatchKeySet KEYS(c10::DispatchKey::PrivateUse1);

at::Generator& device_generator();

class OnDevice {   // while it lives, memory is taken on that device
 public:
  explicit OnDevice(c10::optional<at::Device> device) : before_(current_device) {
    if (device && device->has_index()) current_device = device->index();
  }
  ~OnDevice() { current_device = before_; }

 private:
  c10::DeviceIndex before_;
};

// An NPU takes a tensor of the host beside its own ones in these alone: copies, and indices into a tensor of the device.
inline bool may_mix(const std::string& name, bool first_is_host) {
  static const std::set<std::string> copies{"aten::copy_", "aten::_copy_from", "aten::_copy_from_and_resize", "aten::_foreach_copy_",
                                            "aten::set_", "aten::is_set_to"};
  static const std::set<std::string> indexing{"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"};
  return copies.count(name) || (!first_is_host && indexing.count(name));
}

// Replaces the operator's arguments on the stack by their aliases, and its results by tensors of the device.
inline void on_aliases(const c10::OperatorHandle& op, Stack* stack, Aliases& aliases) {
  const auto& schema = op.schema();
  const size_t begin = stack->size() - schema.arguments().size();
  for (size_t i = begin; i < stack->size(); ++i) {
    IValue& value = (*stack)[i];
    value = value.isNone() && schema.arguments()[i - begin].name() == "generator" ? IValue(device_generator()) : aliases.to_cpu(value);
  }
  TORCH_CHECK(aliases.empty() || !aliases.host_tensors || may_mix(schema.name(), aliases.first_is_host),
              "Expected all tensors to be on the same device, but found at least two devices, npu and cpu, in ", schema.name());
  op.callBoxed(stack);
  OnDevice here(aliases.device);
  aliases.write_back();
  for (size_t i = stack->size() - schema.returns().size(); i < stack->size(); ++i) (*stack)[i] = aliases.to_device((*stack)[i]);
}

inline void fallback(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  Aliases aliases;
  on_aliases(op, stack, aliases);
}

// A collective over the group's backend for this device, which is gloo under the name of "hccl": the operators of c10d for the CPU ask
// the group they are given for its CPU backend, so they are given a group whose CPU backend is that one.
inline void collective(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const size_t begin = stack->size() - op.schema().arguments().size();
  for (size_t i = begin; i < stack->size(); ++i) {
    if (op.schema().arguments()[i - begin].name() != "process_group") continue;
    auto group = (*stack)[i].toCustomClass<c10d::ProcessGroup>();
    auto shadow = c10::make_intrusive<c10d::ProcessGroup>(group->getRank(), group->getSize());
    shadow->setBackend(c10::DeviceType::CPU, c10d::ProcessGroup::BackendType::GLOO, group->getBackend(NPU));
    (*stack)[i] = shadow;
  }
  Aliases aliases;
  on_aliases(op, stack, aliases);
}

inline Tensor empty(c10::IntArrayRef size, c10::optional<at::ScalarType> dtype, c10::optional<at::Layout>, c10::optional<at::Device> device,
                    c10::optional<bool>, c10::optional<at::MemoryFormat> format) {
  OnDevice here(device);
  return at::detail::empty_generic(size, &memory(), KEYS, c10::dtype_or_default(dtype), format);
}

inline Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, c10::optional<at::ScalarType> dtype, c10::optional<at::Layout>,
                            c10::optional<at::Device> device, c10::optional<bool>) {
  OnDevice here(device);
  return at::detail::empty_strided_generic(size, stride, &memory(), KEYS, c10::dtype_or_default(dtype));
}

inline Tensor as_strided(const Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride, c10::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

inline Tensor& set_storage(Tensor& self, at::Storage storage, int64_t offset, c10::IntArrayRef size, c10::IntArrayRef stride) {
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, stride, offset);
  return self;
}

inline Tensor& set_whole_storage(Tensor& self, at::Storage storage) {
  const int64_t count = storage.nbytes() / self.element_size();
  return set_storage(self, std::move(storage), 0, {count}, {1});
}

inline Tensor& set_tensor(Tensor& self, const Tensor& source) {
  return set_storage(self, source.storage(), source.storage_offset(), source.sizes(), source.strides());
}

inline Tensor& set_nothing(Tensor& self) {
  return set_tensor(self, empty({0}, self.scalar_type(), c10::nullopt, self.device(), c10::nullopt, c10::nullopt));
}

// Between the host and the device, in either direction.
inline Tensor copy_from(const Tensor& self, const Tensor& to, bool) {
  on_cpu(to).copy_(on_cpu(self));
  return to;
}

// Parameters of a module that moves between host and device stay the objects they are, with all that is written on them.
inline bool has_compatible_type(const Tensor& self, const Tensor& from) {
  auto is_dense = [](const Tensor& tensor) { return on_device(tensor) || (tensor.is_cpu() && tensor.layout() == at::kStrided); };
  return is_dense(self) && is_dense(from);
}

inline void record_stream(Tensor&, at::Stream) {}

}  // namespace twin

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&twin::fallback>()); }

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &twin::empty);
  m.impl("empty_strided", &twin::empty_strided);
  m.impl("as_strided", &twin::as_strided);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("resize_", &at::native::resize_);
  m.impl("set_.source_Storage_storage_offset", &twin::set_storage);
  m.impl("set_.source_Storage", &twin::set_whole_storage);
  m.impl("set_.source_Tensor", &twin::set_tensor);
  m.impl("set_", &twin::set_nothing);
  m.impl("_copy_from", &twin::copy_from);
  m.impl("_has_compatible_shallow_copy_type", &twin::has_compatible_type);
  m.impl("record_stream", &twin::record_stream);
}

TORCH_LIBRARY_IMPL(c10d, PrivateUse1, m) {
  for (const char* name : {"send", "recv_", "recv_any_source_", "broadcast_", "reduce_", "allreduce_", "allreduce_coalesced_", "allgather_",
                           "_allgather_base_", "allgather_coalesced_", "allgather_into_tensor_coalesced_", "reduce_scatter_",
                           "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_", "gather_", "scatter_", "alltoall_",
                           "alltoall_base_", "barrier"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&twin::collective>());
}
