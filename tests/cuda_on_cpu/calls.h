// Reads calls from standard input and writes results to standard output.
#pragma once

#include "dtype.h"

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

namespace calls {

template <class T>
bool read(T* to, size_t count = 1) {
  return std::fread(to, sizeof(T), count, stdin) == count;
}

inline int64_t number() {
  int64_t value = 0;
  if (!read(&value)) std::abort();
  return value;
}

inline double real() {
  double value = 0;
  if (!read(&value)) std::abort();
  return value;
}

// Memory of exactly `bytes`, so that a sanitizer sees an access beyond it.
struct Tensor {
  std::unique_ptr<char, decltype(&std::free)> memory{nullptr, &std::free};
  int64_t bytes = 0;
  void* data = nullptr;
  std::vector<int64_t> size, stride;  // in elements

  template <class T = void>
  T* as() const {
    return static_cast<T*>(data);
  }
  void write() const { std::fwrite(memory.get(), 1, bytes, stdout); }
};

inline Tensor with_memory(int64_t bytes) {
  Tensor x;
  x.bytes = bytes;
  x.memory.reset(static_cast<char*>(std::malloc(bytes)));
  x.data = x.memory.get();
  // NaN in every floating type: an element that is never written is seen
  std::memset(x.data, 0xff, bytes);
  return x;
}

// Bytes of the memory, offset in bytes, dimensions, sizes, strides, memory; or -1 for none.
inline Tensor tensor() {
  const int64_t bytes = number();
  if (bytes < 0) return {};
  Tensor x = with_memory(bytes);
  x.data = x.memory.get() + number();
  x.size.resize(number());
  x.stride.resize(x.size.size());
  for (auto* list : {&x.size, &x.stride}) {
    for (auto& value : *list) value = number();
  }
  if (!read(x.memory.get(), bytes)) std::abort();
  return x;
}

inline int64_t width(dori::DType dtype) {
  return dtype == dori::DType::float64 ? 8 : dtype == dori::DType::float32 ? 4 : 2;
}
inline int64_t accumulate_width(dori::DType dtype) { return dtype == dori::DType::float64 ? 8 : 4; }

// Calls run(op, dtype) for each call; calls begin with the number of the op and that of the dtype.
template <class Run>
int each(const Run& run) {
  int64_t op = 0;
  while (read(&op)) {
    if (const int error = run(op, static_cast<dori::DType>(number()))) return error;
  }
  return 0;
}

}  // namespace calls
