// A kernel as a function of a shared library, launched as cuLaunchKernel does it: grid, block, pointers to arguments.
// With EMULATOR_MAIN the same as a program, for the sanitizers:
//
//     program                                    prints the kernel's signature
//     program GX GY GZ BX BY BZ ARGUMENT...      a number, or for a pointer a file; one it may write is written back
#pragma once

#include "cuda.h"

#include <fstream>
#include <iterator>
#include <tuple>
#include <type_traits>

namespace emulator {

template <class T> std::string type_name()
{
    if constexpr (std::is_pointer_v<T>) {
        using Pointee = std::remove_pointer_t<T>;
        return (std::is_const_v<Pointee> ? "const " : "") + type_name<std::remove_const_t<Pointee>>() + "*";
    } else
        return (std::is_floating_point_v<T> ? "float" : std::is_signed_v<T> ? "int" : "uint") +
               std::to_string(8 * sizeof(T));
}

// As NumPy names them: "const uint16*,int64,float64*".
template <class... A> std::string signature(void (*)(A...))
{
    std::string text;
    ((text += (text.empty() ? "" : ",") + type_name<A>()), ...);
    return text;
}

template <class... A, std::size_t... I>
std::string launch(void (*kernel)(A...), dim3 grid, dim3 block, void **values, std::index_sequence<I...>)
{
    return run_grid(grid, block, [&] { kernel(*static_cast<std::remove_const_t<A> *>(values[I])...); });
}

template <class... A> std::string launch(void (*kernel)(A...), dim3 grid, dim3 block, void **values)
{
    return launch(kernel, grid, block, values, std::index_sequence_for<A...>());
}

// An argument read from the command line. Buffers are as long as their files, so that a byte too far is found.
template <class T> struct Argument {
    T value;
    explicit Argument(const char *text)
    {
        if constexpr (std::is_floating_point_v<T>)
            value = T(std::strtod(text, nullptr)); // nan and inf too
        else if constexpr (std::is_signed_v<T>)
            value = T(std::strtoll(text, nullptr, 10));
        else
            value = T(std::strtoull(text, nullptr, 10));
    }
};

template <class T> struct Argument<T *> {
    T *value = nullptr;
    std::string path;
    std::size_t bytes = 0;

    explicit Argument(const char *text) : path(text)
    {
        std::ifstream file(path, std::ios::binary);
        const std::string content{std::istreambuf_iterator<char>(file), {}};
        bytes = content.size();
        void *memory = nullptr;
        if (!file || posix_memalign(&memory, 256, bytes))
            std::exit(66);
        std::copy(content.begin(), content.end(), static_cast<char *>(memory));
        value = static_cast<T *>(memory);
    }
    ~Argument()
    {
        if (!std::is_const_v<T>)
            std::ofstream(path, std::ios::binary).write((const char *)value, bytes);
        std::free((void *)value);
    }
};

template <class... A, std::size_t... I>
int program(void (*kernel)(A...), char **words, std::index_sequence<I...>)
{
    const auto number = [&](int n) { return (unsigned)std::strtoul(words[n], nullptr, 10); };
    std::tuple<Argument<A>...> arguments{words[7 + I]...};
    void *values[] = {&std::get<I>(arguments).value...};
    const std::string error = launch(kernel, {number(1), number(2), number(3)}, {number(4), number(5), number(6)}, values);
    std::fputs(error.c_str(), stderr);
    return error.empty() ? 0 : 70;
}

template <class... A> int program(void (*kernel)(A...), int count, char **words)
{
    if (count == 1) {
        std::fputs(signature(kernel).c_str(), stdout);
        return 0;
    }
    return count == 7 + (int)sizeof...(A) ? program(kernel, words, std::index_sequence_for<A...>()) : 64;
}

} // namespace emulator

extern "C" const emulator::Traffic *emulator_traffic() { return emulator::traffic; }

#ifdef EMULATOR_MAIN
#define EMULATE(kernel)                                                                                                \
    int main(int count, char **words) { return emulator::program(kernel, count, words); }
#else
#define EMULATE(kernel)                                                                                                \
    extern "C" const char *kernel##_signature()                                                                        \
    {                                                                                                                  \
        static const std::string text = emulator::signature(kernel);                                                   \
        return text.c_str();                                                                                           \
    }                                                                                                                  \
    extern "C" const char *kernel##_launch(const unsigned *shape, void **values)                                       \
    {                                                                                                                  \
        static thread_local std::string error;                                                                         \
        error = emulator::launch(kernel, {shape[0], shape[1], shape[2]}, {shape[3], shape[4], shape[5]}, values);      \
        return error.c_str();                                                                                          \
    }
#endif
