// What translated PTX calls: one function an instruction that C++ has no operator for.
#pragma once

#include "cuda.h"

#include <type_traits>

namespace ptx {

// Registers start as this and not as zero.
constexpr unsigned long long POISON = 0xDEADBEEFDEADBEEFull;

template <class To, class From> To bits(From value)
{
    static_assert(sizeof(To) == sizeof(From), "registers of different width");
    To other;
    std::memcpy(&other, &value, sizeof other);
    return other;
}

template <class T> T poison()
{
    T value;
    std::memcpy(&value, &POISON, sizeof value);
    return value;
}

// --------------------------------------------------------------------------------------------------------- memory

inline void aligned(unsigned long long address, std::size_t bytes)
{
    if (address % bytes)
        emulator::fail("misaligned access of %zu bytes", bytes);
}

// Every block finds its window poisoned.
inline void enter(unsigned char *window, std::size_t size, unsigned most_threads)
{
    if (emulator::self->block_size.count() > most_threads)
        emulator::fail("a block of more than the %u threads it was compiled for", most_threads);
    std::call_once(emulator::self->block->poisoned, [&] { std::memset(window, 0xA5, size); });
}

inline std::uint32_t *word(std::uint64_t address, int site)
{
    aligned(address, 4);
    emulator::note(emulator::STORES, address, 4, site);
    return (std::uint32_t *)address;
}

template <class T, int N> struct Vector {
    T part[N];
};

template <class T, int N> Vector<T, N> load_global(std::uint64_t address, int site)
{
    aligned(address, N * sizeof(T));
    return emulator::load((const Vector<T, N> *)address, site);
}

template <class T, int N> void store_global(std::uint64_t address, Vector<T, N> value, int site)
{
    aligned(address, N * sizeof(T));
    emulator::note(emulator::STORES, address, sizeof value, site);
    *(Vector<T, N> *)address = value;
}

// Shared addresses are offsets into the block's window of shared memory.
template <class T, int N> T *shared(unsigned char *window, std::size_t size, std::uint64_t address)
{
    aligned(address, N * sizeof(T));
    if (address > size || N * sizeof(T) > size - address)
        emulator::fail("access to shared memory at %llu, beyond its %zu bytes", (unsigned long long)address, size);
    return (T *)(window + address);
}

// ------------------------------------------------------------------------------------------------------ arithmetic

// Shifts by the width or more give 0, or the sign, and no undefined behaviour.
template <class T> T shl(T value, std::uint32_t by) { return by < 8 * sizeof(T) ? T(value << by) : T(0); }
template <class T> T shr(T value, std::uint32_t by)
{
    return by < 8 * sizeof(T) ? T(value >> by) : T(std::is_signed_v<T> && value < 0 ? -1 : 0);
}

// The least number by -1 wraps, where C++ leaves it undefined.
template <class T> T divide(T x, T y)
{
    if (y == 0)
        emulator::fail("integer division by zero");
    return std::is_signed_v<T> && y == T(-1) ? T(0 - std::make_unsigned_t<T>(x)) : T(x / y);
}

template <class T> T remainder(T x, T y)
{
    if (y == 0)
        emulator::fail("integer division by zero");
    return std::is_signed_v<T> && y == T(-1) ? T(0) : T(x % y);
}

// PTX ISA, prmt without a mode: each digit of the selector takes a byte of both words, or repeats its sign.
inline std::uint32_t permute(std::uint32_t low, std::uint32_t high, std::uint32_t selector)
{
    std::uint32_t made = 0;
    for (int k = 0; k < 4; ++k) {
        const unsigned digit = selector >> 4 * k & 15;
        const std::uint8_t byte = (digit & 4 ? high : low) >> 8 * (digit & 3);
        made |= std::uint32_t(digit & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * k;
    }
    return made;
}

// PTX ISA, bfe and bfi: so many bits from a position on. Beyond the value there are zeros, or its sign.
template <class T> T extract(T value, std::uint32_t position, std::uint32_t length)
{
    using Bits = std::make_unsigned_t<T>;
    constexpr std::uint32_t width = 8 * sizeof(T);
    position &= 255, length &= 255;
    if (!length)
        return 0;
    const Bits found = shr(Bits(value), position), ones = ~shl(~Bits(0), length);
    const bool sign = std::is_signed_v<T> && (Bits(value) >> std::min(position + length - 1, width - 1) & 1);
    const std::uint32_t there = position < width ? std::min(length, width - position) : 0;
    return T((found & ones) | (sign ? shl(~Bits(0), there) : Bits(0)));
}

template <class T> T insert(T bits, T into, std::uint32_t position, std::uint32_t length)
{
    position &= 255, length &= 255;
    const T ones = shl(T(~shl(T(~T(0)), length)), position);
    return T((into & ~ones) | (shl(bits, position) & ones));
}

// ----------------------------------------------------------------------------------------------------------- warps

enum Direction { UP, DOWN, BFLY, IDX };

// PTX ISA, shfl.sync: c holds the clamp in bits 0-4 and the segment mask in bits 8-12.
inline std::uint32_t shuffle(Direction how, std::uint32_t value, std::uint32_t b, std::uint32_t c, std::uint32_t mask,
                             bool &inside)
{
    const int lane = emulator::self->lane, clamp = c & 31, segment = c >> 8 & 31, by = b & 31;
    const int most = (lane & segment) | (clamp & ~segment), least = lane & segment;
    int from = how == UP ? lane - by : how == DOWN ? lane + by : how == BFLY ? lane ^ by : least | (by & ~segment);
    inside = how == UP ? from >= most : from <= most;
    constexpr const char *names[] = {"shfl.sync.up", "shfl.sync.down", "shfl.sync.bfly", "shfl.sync.idx"};
    return emulator_shuffle(mask, value, inside ? from : lane, inside, names[how]);
}

} // namespace ptx
