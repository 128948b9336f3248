// A torch device "npu" (PrivateUse1) on the CPU: see README.md. Loaded by tests/twin/vendor/torch_npu.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include "kernels.h"

namespace twin {

using c10::DeviceIndex;

// One stream, on which work is done when it is asked for.
struct Guard final : c10::impl::DeviceGuardImplInterface {
  static c10::Stream only(c10::Device device) { return c10::Stream(c10::Stream::DEFAULT, device); }

  c10::DeviceType type() const override { return NPU; }
  c10::Device getDevice() const override { return {NPU, current_device}; }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.has_index()) current_device = device.index();
  }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    uncheckedSetDevice(device);
    return before;
  }
  DeviceIndex deviceCount() const noexcept override { return device_count; }

  c10::Stream getStream(c10::Device device) const override { return only(device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return only(device); }
  c10::Stream getNewStream(c10::Device device, int) const override { return only(device); }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool) const override { return only(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  bool queryStream(const c10::Stream&) const override { return true; }
  bool queryEvent(void*) const override { return true; }
  void record(void**, const c10::Stream&, const DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const DeviceIndex) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const c10::Stream&) const override {}
  double elapsedTime(void*, void*, const DeviceIndex) const override { return 0.0; }
};

// The device's generator, apart from the host's: the kernels are the CPU's, and so is its kind.
at::Generator& device_generator() {
  static at::Generator generator = at::detail::createCPUGenerator();
  return generator;
}

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  const at::Generator& getDefaultGenerator(DeviceIndex) const override { return device_generator(); }
  at::Generator getNewGenerator(DeviceIndex) const override { return at::detail::createCPUGenerator(); }
  at::Device getDeviceFromPtr(void*) const override { return {NPU, current_device}; }
  at::Allocator* getPinnedMemoryAllocator() const override { return c10::GetAllocator(c10::DeviceType::CPU); }
  DeviceIndex deviceCount() const override { return device_count; }
  DeviceIndex getCurrentDevice() const override { return current_device; }
  void setCurrentDevice(DeviceIndex device) const override { current_device = device; }
  DeviceIndex exchangeDevice(DeviceIndex device) const override { return std::exchange(current_device, device); }
  DeviceIndex maybeExchangeDevice(DeviceIndex device) const override {
    return device < 0 ? current_device : std::exchange(current_device, device);
  }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t size) const override {
    c10::DataPtr fresh = memory().allocate(size);
    if (const size_t kept = std::min(size, storage.nbytes())) std::memcpy(fresh.get(), storage.data(), kept);
    const_cast<c10::Storage&>(storage).set_data_ptr_noswap(std::move(fresh));
    const_cast<c10::Storage&>(storage).set_nbytes(size);
  }
};

}  // namespace twin

C10_REGISTER_GUARD_IMPL(PrivateUse1, twin::Guard);

TORCH_LIBRARY(npu_twin, m) {
  m.def("seed(int seed) -> ()", [](int64_t seed) { twin::device_generator().set_current_seed(static_cast<uint64_t>(seed)); });
  m.def("initial_seed() -> int", []() { return static_cast<int64_t>(twin::device_generator().current_seed()); });
  m.def("rng_state() -> Tensor", []() { return twin::device_generator().get_state(); });
  m.def("set_rng_state(Tensor state) -> ()", [](const at::Tensor& state) { twin::device_generator().set_state(state); });
  m.def("on_cpu(Tensor(a) tensor) -> Tensor(a)", &twin::on_cpu);
}

// What vendor/torch_npu asks through ctypes.
extern "C" {
void twin_start(int64_t devices, int64_t bytes) {
  twin::device_count = devices;
  twin::memory().total = bytes;
  c10::SetAllocator(twin::NPU, &twin::memory());
  static twin::Hooks hooks;
  at::RegisterPrivateUse1HooksInterface(&hooks);
}
int64_t twin_device() { return twin::current_device; }
void twin_set_device(int64_t index) { twin::current_device = index; }
int64_t twin_total() { return twin::memory().total; }
int64_t twin_held() { return twin::memory().held(); }
int64_t twin_peak() { return twin::memory().peak(); }
void twin_reset_peak() { twin::memory().resetPeakStats(0); }
void twin_pool(int64_t in_use) { twin::memory().in_pool = in_use != 0; }
void twin_pool_callbacks(twin::PoolTakes takes, twin::PoolGives gives) {
  twin::memory().pool_takes = takes;
  twin::memory().pool_gives = gives;
}
// 0, or an error's number: an exception cannot pass through ctypes.
int64_t twin_sleep(int64_t pointer) try { twin::memory().sleep(reinterpret_cast<void*>(pointer)); return 0; } catch (const c10::Error&) { return 1; }
int64_t twin_wake(int64_t pointer) try { twin::memory().wake(reinterpret_cast<void*>(pointer)); return 0; } catch (const c10::Error&) { return 1; }
}
