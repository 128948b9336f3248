// The device's memory: blocks of host memory that are counted, may belong to a pool, and may be put to sleep.
//
// Fresh and woken memory is filled with 0xFF, which is NaN in every floating type: nobody may rely on what is in it. The memory of
// a pool that sleeps cannot be touched: a read or a write ends the process, as it would end the job on a device.
#pragma once
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/util/Exception.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <unordered_map>

namespace twin {

constexpr auto NPU = c10::DeviceType::PrivateUse1;
constexpr int NOTHING = 0xFF;

inline thread_local c10::DeviceIndex current_device = 0;
inline c10::DeviceIndex device_count = 1;

using PoolTakes = void (*)(int64_t device, int64_t size, int64_t pointer);
using PoolGives = void (*)(int64_t pointer);

struct Block {
  size_t size;
  bool pooled;
  bool asleep;
};

class Memory final : public c10::DeviceAllocator {
 public:
  size_t total = size_t(4) << 30;
  std::atomic<bool> in_pool{false};
  PoolTakes pool_takes = nullptr;
  PoolGives pool_gives = nullptr;

  c10::DataPtr allocate(size_t wanted) override {
    c10::DataPtr data = take(wanted);
    if (data.get()) std::memset(data.get(), NOTHING, wanted);
    return data;
  }

  // The same without filling, for who writes all of it at once.
  c10::DataPtr take(size_t wanted) {
    const c10::Device device(NPU, current_device);
    if (wanted == 0) return {nullptr, nullptr, &give_back, device};
    const bool pooled = in_pool && pool_takes;
    const size_t grain = pooled ? 4096 : 512, size = (wanted + grain - 1) / grain * grain;
    TORCH_CHECK_WITH(OutOfMemoryError, held() + size <= total, "NPU out of memory: ", size, " bytes wanted, ", total - held(), " free");
    void* pointer = pooled ? take_pages(size) : std::aligned_alloc(grain, size);
    TORCH_CHECK_WITH(OutOfMemoryError, pointer, "the host has no memory for the twin's device");
    {
      std::lock_guard<std::mutex> guard(lock_);
      blocks_[pointer] = {size, pooled, false};
    }
    count(size);
    if (pooled) pool_takes(current_device, size, reinterpret_cast<int64_t>(pointer));
    return {pointer, pointer, &give_back, device};
  }

  // What a sleeping allocator asks: drop the content of a pool's block and keep its address; give it memory again.
  void sleep(void* pointer) {
    Block& block = find(pointer);
    TORCH_CHECK(block.pooled && !block.asleep, "only a pool's memory that is awake can be put to sleep");
    madvise(pointer, block.size, MADV_DONTNEED);
    mprotect(pointer, block.size, PROT_NONE);
    block.asleep = true;
    held_ -= block.size;
  }
  void wake(void* pointer) {
    Block& block = find(pointer);
    TORCH_CHECK(block.asleep, "memory that does not sleep cannot be woken");
    mprotect(pointer, block.size, PROT_READ | PROT_WRITE);
    std::memset(pointer, NOTHING, block.size);
    block.asleep = false;
    count(block.size);
  }

  size_t held() const { return held_; }
  size_t peak() const { return peak_; }
  void resetPeakStats(c10::DeviceIndex) override { peak_ = held_.load(); }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t size) const override { std::memcpy(to, from, size); }
  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t) override {}
  void recordStream(const c10::DataPtr&, c10::Stream) override {}
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex) override { return {}; }
  void resetAccumulatedStats(c10::DeviceIndex) override {}

 private:
  std::atomic<size_t> held_{0}, peak_{0};
  std::mutex lock_;
  std::unordered_map<void*, Block> blocks_;

  static void* take_pages(size_t size) {
    void* pointer = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return pointer == MAP_FAILED ? nullptr : pointer;
  }

  static void give_back(void* pointer);

  Block& find(void* pointer) {
    std::lock_guard<std::mutex> guard(lock_);
    auto found = blocks_.find(pointer);
    TORCH_CHECK(found != blocks_.end(), "no block of the device begins there");
    return found->second;
  }

  void count(size_t size) {
    held_ += size;
    if (held_ > peak_) peak_ = held_.load();
  }
};

inline Memory& memory() {
  static Memory* instance = new Memory;   // never destroyed: tensors outlive static objects
  return *instance;
}

inline void Memory::give_back(void* pointer) {
  if (!pointer) return;
  Memory& all = memory();
  Block block;
  {
    std::lock_guard<std::mutex> guard(all.lock_);
    auto found = all.blocks_.find(pointer);
    block = found->second;
    all.blocks_.erase(found);
  }
  if (!block.asleep) all.held_ -= block.size;
  if (!block.pooled) return std::free(pointer);
  all.pool_gives(reinterpret_cast<int64_t>(pointer));
  munmap(pointer, block.size);
}

}  // namespace twin
