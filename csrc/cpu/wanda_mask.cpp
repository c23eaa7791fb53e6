#include "wanda_mask.h"

#include "cpu/simd.h"

#include <bit>
#include <cmath>
#include <vector>

namespace dori::cpu {
namespace {

// Bits of non-negative floats order as the floats do, so scores compare as integers. Clearing the
// sign takes the magnitude; every NaN gets one key above infinity's.
DORI_INLINE int32_t sort_key(float score) {
  const int32_t bits = std::bit_cast<int32_t>(score) & 0x7fffffff;
  return bits > 0x7f800000 ? 0x7f800001 : bits;
}
DORI_INLINE int64_t sort_key(double score) {
  const int64_t bits = std::bit_cast<int64_t>(score) & 0x7fffffffffffffff;
  return bits > 0x7ff0000000000000 ? 0x7ff0000000000001 : bits;
}

template <class A>
using key_t = decltype(sort_key(A{}));

// One row of the weight with its mask, and memory for its keys.
template <class T>
struct Row {
  const T* weight;
  const accumulate_t<T>* act_norm;
  const accumulate_t<T>* base_act_norm;
  bool* mask;
  key_t<accumulate_t<T>>* keys;
  int64_t columns, count;
};

// Selection: every key from `from` on, and the first `ties` of the keys equal to from - 1.
template <class Key>
struct Cut {
  Key from;
  Key ties;
};

// Number of keys that are at least `from`.
template <class Key>
DORI_INLINE Key count_from(const Key* keys, int64_t columns, Key from) {
  Key count = 0;
#pragma omp simd reduction(+ : count)
  for (int64_t i = 0; i < columns; ++i) count += keys[i] >= from;
  return count;
}

// Bisection over keys: at most `count` keys reach `high`, more than that (or all, at 0) reach
// `low`. It reads a row in the cache some 15 times, where sorting would move it.
template <class Key>
DORI_INLINE Cut<Key> find_cut(const Key* keys, int64_t columns, Key count, Key largest) {
  Key low = 0, high = largest + 1, above = 0;
  while (high - low > 1 && above != count) {
    const Key middle = low + (high - low) / 2;
    const Key reached = count_from(keys, columns, middle);
    if (reached > count) {
      low = middle;
    } else {
      high = middle;
      above = reached;
    }
  }
  return {high, count - above};
}

// Returns the largest key.
template <class T, class Key, class A>
DORI_INLINE Key fill_keys(Key* keys, const T* weight, const A* act_norm, int64_t columns) {
  Key largest = 0;
#pragma omp simd reduction(max : largest)
  for (int64_t i = 0; i < columns; ++i) {
    const Key key = sort_key(load(weight[i]) * act_norm[i]);
    keys[i] = key;
    largest = key > largest ? key : largest;
  }
  return largest;
}

// The lowest columns fill the ties, so this loop ends at the last of them.
template <class Key>
DORI_INLINE void mark(bool* mask, const Key* keys, int64_t columns, Cut<Key> cut) {
#pragma omp simd
  for (int64_t i = 0; i < columns; ++i) mask[i] = keys[i] >= cut.from;
  for (int64_t i = 0; cut.ties > 0 && i < columns; ++i) {
    if (keys[i] != cut.from - 1) continue;
    mask[i] = true;
    --cut.ties;
  }
}

// Strictly above: a NaN exceeds nothing and nothing exceeds a NaN.
template <class T, class A>
DORI_INLINE void keep_above_base(bool* mask, const T* weight, const A* act_norm, const A* base,
                                 int64_t columns) {
#pragma omp simd
  for (int64_t i = 0; i < columns; ++i) {
    const A target_score = std::abs(load(weight[i]) * act_norm[i]);
    const A base_score = std::abs(load(weight[i]) * base[i]);
    mask[i] = target_score > base_score ? mask[i] : false;
  }
}

template <class T>
DORI_INLINE void mask_row(const Row<T>& row) {
  using Key = key_t<accumulate_t<T>>;
  const Key largest = fill_keys(row.keys, row.weight, row.act_norm, row.columns);
  const auto cut = find_cut(row.keys, row.columns, static_cast<Key>(row.count), largest);
  mark(row.mask, row.keys, row.columns, cut);
  if (row.base_act_norm) {
    keep_above_base(row.mask, row.weight, row.act_norm, row.base_act_norm, row.columns);
  }
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_ROW(T) \
  DORI_SIMD void mask_one(const Row<T>& row) { mask_row(row); }
DORI_ROW(float)
DORI_ROW(double)
DORI_ROW(bfloat16)
DORI_ROW(float16)
#undef DORI_ROW

}  // namespace

void wanda_mask(const WandaMask& task, int64_t first_row, int64_t last_row) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    // one buffer of keys per thread, for all its rows
    std::vector<key_t<A>> keys(task.columns);
    for (int64_t r = first_row; r < last_row; ++r) {
      mask_one(Row<T>{.weight = static_cast<const T*>(task.weight) + r * task.row_stride,
                      .act_norm = static_cast<const A*>(task.act_norm),
                      .base_act_norm = static_cast<const A*>(task.base_act_norm),
                      .mask = task.mask + r * task.columns,
                      .keys = keys.data(),
                      .columns = task.columns,
                      .count = task.count});
    }
  });
}

}  // namespace dori::cpu
