// One memory, two tensors: the device's, and the same bytes as a tensor of the CPU, on which the CPU's kernels work.
#pragma once
#include <ATen/ATen.h>
#include <ATen/core/List.h>
#include <ATen/native/Resize.h>

#include "memory.h"

namespace twin {

using at::Tensor;
using c10::IValue;

inline bool on_device(const Tensor& tensor) { return tensor.defined() && tensor.device().type() == NPU; }

inline c10::Storage storage_of(c10::DataPtr data, size_t size, c10::Allocator* allocator) {
  return c10::Storage(c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(), size, std::move(data), allocator,
                                                            /*resizable=*/true));
}

// A tensor laid out like another one, over a storage.
inline Tensor over(c10::Storage storage, c10::DispatchKey key, const Tensor& like) {
  Tensor made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), c10::DispatchKeySet(key), like.dtype());
  made.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
  if (like.is_conj()) made._set_conj(true);
  if (like.is_neg()) made._set_neg(true);
  return made;
}

// The tensor's bytes as a tensor of the CPU, which keeps the device's storage alive.
inline Tensor on_cpu(const Tensor& tensor) {
  if (!on_device(tensor)) return tensor;
  auto* owner = new c10::Storage(tensor.storage());
  c10::DataPtr data(owner->mutable_data(), owner, [](void* kept) { delete static_cast<c10::Storage*>(kept); }, c10::DeviceType::CPU);
  return over(storage_of(std::move(data), owner->nbytes(), c10::GetAllocator(c10::DeviceType::CPU)), c10::DispatchKey::CPU, tensor);
}

// A copy of a storage in the device's memory, in the pool that is in use.
inline c10::Storage brought(const c10::Storage& storage) {
  c10::DataPtr data = memory().take(storage.nbytes());
  if (storage.nbytes()) std::memcpy(data.get(), storage.data(), storage.nbytes());
  return storage_of(std::move(data), storage.nbytes(), &memory());
}

// The aliases of one operator's arguments, and the way back for what it returns.
class Aliases {
 public:
  c10::optional<c10::Device> device;   // of the first device tensor, or of the argument `device`
  bool host_tensors = false;           // a tensor of the host with dimensions was among the arguments
  bool first_is_host = false;

  bool empty() const { return pairs_.empty(); }

  IValue to_cpu(const IValue& value) {
    if (value.isTensor()) return take(value.toTensor());
    if (value.isDevice() && value.toDevice().type() == NPU) {
      if (!device) device = value.toDevice();
      return c10::Device(c10::DeviceType::CPU);
    }
    return value.isList() ? each(value, [this](const IValue& item) { return to_cpu(item); }) : value;
  }

  IValue to_device(const IValue& value) {
    if (value.isTensor()) return give(value.toTensor());
    return value.isList() ? each(value, [this](const IValue& item) { return to_device(item); }) : value;
  }

  // Sizes, strides and memory that the CPU's kernel gave an argument (resize_, out=).
  void write_back() {
    for (auto& [real, alias] : pairs_) {
      if (alias.storage().data() != real.storage().data()) {
        at::native::resize_(real, alias.sizes());
        on_cpu(real).copy_(alias);
      } else if (alias.sizes() != real.sizes() || alias.strides() != real.strides()) {
        real.unsafeGetTensorImpl()->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
      }
    }
  }

 private:
  std::vector<std::pair<Tensor, Tensor>> pairs_;                  // device tensor, its alias
  std::vector<std::pair<c10::Storage, c10::Storage>> brought_;    // what the kernel made, and its copy on the device

  template <typename Function>
  static IValue each(const IValue& value, Function change) {
    auto list = value.toList();
    c10::impl::GenericList changed(list.elementType());
    for (const IValue& item : value.toListRef()) changed.push_back(change(item));
    return changed;
  }

  IValue take(const Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!on_device(tensor)) {
      host_tensors |= tensor.dim() > 0;
      first_is_host |= pairs_.empty() && tensor.dim() > 0;
      return tensor;
    }
    if (!device) device = tensor.device();
    for (auto& [real, alias] : pairs_)
      if (real.is_same(tensor)) return alias;
    pairs_.emplace_back(tensor, on_cpu(tensor));
    return pairs_.back().second;
  }

  // An argument itself, a view of an argument, or new memory, which is brought to the device.
  Tensor give(const Tensor& tensor) {
    if (!tensor.defined() || on_device(tensor)) return tensor;
    for (auto& [real, alias] : pairs_)
      if (alias.is_same(tensor)) return real;
    for (auto& [real, alias] : pairs_)
      if (alias.storage().data() && tensor.storage().data() == alias.storage().data())
        return over(real.storage(), c10::DispatchKey::PrivateUse1, tensor);
    for (auto& [host, here] : brought_)
      if (host.is_alias_of(tensor.storage())) return over(here, c10::DispatchKey::PrivateUse1, tensor);
    brought_.emplace_back(tensor.storage(), brought(tensor.storage()));
    return over(brought_.back().second, c10::DispatchKey::PrivateUse1, tensor);
  }
};

}  // namespace twin
