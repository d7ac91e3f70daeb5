// Memory of the kernels: blocks that threads keep, arenas that hand them out in pieces, and arrays of zeros.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>
#include <utility>

namespace gwf::GWF_ISA {

// Page-aligned blocks. A thread keeps the last few small ones: fresh pages would cost more than a small call computes.
class BlockCache {
  public:
    struct Block {
        void* memory = nullptr;
        size_t bytes = 0;
    };
    ~BlockCache() {
        for (Block& block : blocks_) std::free(block.memory);
    }
    Block acquire(size_t bytes) {
        for (Block& block : blocks_)
            if (block.bytes >= bytes) return std::exchange(block, Block{});
        bytes = (bytes + 4095) / 4096 * 4096;
        void* memory = std::aligned_alloc(4096, bytes);
        if (!memory) throw std::bad_alloc();
        return {memory, bytes};
    }
    void release(Block block) {
        if (block.bytes <= largest_kept)
            for (Block& kept : blocks_)
                if (kept.bytes < block.bytes) std::swap(kept, block);
        std::free(block.memory);
    }
    static BlockCache& of_this_thread() {
        thread_local BlockCache cache;
        return cache;
    }

  private:
    static constexpr size_t largest_kept = 1 << 20;
    Block blocks_[3];
};

// Cache-line-aligned memory, handed out in pieces.
template <class T> class Arena {
  public:
    explicit Arena(int64_t count)
        : block_(BlockCache::of_this_thread().acquire(size_t(std::max<int64_t>(count, 1)) * sizeof(T))),
          next_(static_cast<T*>(block_.memory)) {}
    ~Arena() { BlockCache::of_this_thread().release(block_); }
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;
    static int64_t rounded(int64_t count) { return (count + 15) / 16 * 16; }
    T* take(int64_t count) {
        T* piece = next_;
        next_ += rounded(count);
        return piece;
    }

  private:
    BlockCache::Block block_;
    T* next_;
};

// Zeros on a cache line's border.
template <class T> class AlignedArray {
  public:
    explicit AlignedArray(int64_t count = 0)
        : memory_(static_cast<T*>(std::aligned_alloc(64, size_t(count * int64_t(sizeof(T)) / 64 + 1) * 64))) {
        if (!memory_) throw std::bad_alloc();
        std::fill_n(memory_.get(), count, T(0));
    }
    T* data() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(T* memory) const { std::free(memory); }
    };
    std::unique_ptr<T, Free> memory_;
};

}  // namespace gwf::GWF_ISA
