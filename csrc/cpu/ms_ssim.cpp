#include "ms_ssim.h"

#include "cpu/simd.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

namespace dori::cpu {
namespace {

template <class A>
struct Extent {
  A low, high;
};

// One scale of one image in the workspace.
template <class A>
struct Image {
  A *planes, *mean, *variance, *pivot;
  Extent<A>* extent;
};

template <class A>
Image<A> image_at(const MsSsim& task, int64_t image, int s) {
  A* at = static_cast<A*>(task.workspace) + image * task.image_size();
  for (int before = 0; before < s; ++before) at += task.scale_size(before);
  const Scale& scale = task.scale[s];
  A* mean = at + task.channels * scale.height * scale.width;
  A* variance = mean + task.channels * scale.inner_size();
  A* pivot = variance + task.channels * scale.inner_size();
  return {at, mean, variance, pivot, reinterpret_cast<Extent<A>*>(pivot + task.channels)};
}

// Window and scratch memory of one thread. The window is separable: rows first, then columns.
template <class A>
struct Blur {
  const Scale* scale;
  int kernel_size;
  A window[kMaxWindow];
  A* products;  // [height, width]
  A* rows;      // [height, width]
};

// Calls body with the length of the window as a constant, so that the loops over it unroll.
template <class Body>
DORI_INLINE auto with_window(int kernel_size, const Body& body) {
  switch (kernel_size) {
    case 3:
      return body(std::integral_constant<int, 3>{});
    case 5:
      return body(std::integral_constant<int, 5>{});
    case 7:
      return body(std::integral_constant<int, 7>{});
    case 9:
      return body(std::integral_constant<int, 9>{});
    default:
      return body(std::integral_constant<int, 11>{});
  }
}

// Comparisons skip a NaN; x - x is NaN for it, as for infinities, and 0 for anything else.
template <class T, class A = accumulate_t<T>>
DORI_INLINE Extent<A> extent_of(const T* x, int64_t n) {
  A low = std::numeric_limits<A>::infinity(), high = -low, poison = 0;
#pragma omp simd reduction(min : low) reduction(max : high) reduction(+ : poison)
  for (int64_t i = 0; i < n; ++i) {
    const A value = load(x[i]);
    low = value < low ? value : low;
    high = value > high ? value : high;
    poison += value - value;
  }
  return {low + poison, high + poison};
}

// Writes the plane around its mean, where squares and their differences keep most digits, and
// returns the value that is now 0 (after the stretch to [0, 1] if `rescale`). The mean need not be
// exact.
template <class T, class A>
DORI_INLINE A center_plane(A* to, const T* x, int64_t n, bool rescale) {
  const Extent<A> extent = extent_of(x, n);
  A mean = 0;
#pragma omp simd reduction(+ : mean)
  for (int64_t i = 0; i < n; ++i) mean += load(x[i]);
  // a constant plane becomes exactly 0 and is not stretched, which would divide 0 by 0
  const bool constant = extent.high == extent.low;
  mean = constant ? extent.low : mean / static_cast<A>(n);
  const A span = rescale && !constant ? extent.high - extent.low : A(1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) to[i] = (static_cast<A>(load(x[i])) - mean) / span;
  return rescale ? (mean - extent.low) / span : mean;
}

// Means of 2 x 2 pixels; an odd last row or column of the finer plane, `width` wide, is dropped.
template <class A>
DORI_INLINE void pool_plane(A* to, const A* x, const Scale& scale, int64_t width) {
  for (int64_t r = 0; r < scale.height; ++r, to += scale.width) {
    const A *upper = x + 2 * r * width, *lower = upper + width;
#pragma omp simd
    for (int64_t c = 0; c < scale.width; ++c) {
      to[c] = (upper[2 * c] + upper[2 * c + 1] + lower[2 * c] + lower[2 * c + 1]) * A(0.25);
    }
  }
}

// Sum of K elements under the window, `stride` apart: 1 along a row, the width along a column.
template <int K, class A>
DORI_INLINE A weighted(const Blur<A>& blur, const A* x, int64_t stride) {
  A sum = 0;
#pragma GCC unroll 11
  for (int i = 0; i < K; ++i) sum += blur.window[i] * x[i * stride];
  return sum;
}

// All loops below run over a whole plane as one row. Where a window wraps around the right edge
// they compute numbers that are never read; in exchange no row has a short remainder.
template <int K, class A>
DORI_INLINE void blur_rows(const Blur<A>& blur, const A* x) {
  const int64_t n = blur.scale->height * blur.scale->width - (K - 1);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) blur.rows[i] = weighted<K>(blur, x + i, 1);
}

template <class A>
DORI_INLINE void multiply(const Blur<A>& blur, const A* x, const A* y) {
  const int64_t n = blur.scale->height * blur.scale->width;
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) blur.products[i] = x[i] * y[i];
}

// Mean E[x] and variance E[x^2] - E[x]^2 under the window.
template <int K, class A>
DORI_INLINE void moments_of(const Blur<A>& blur, const A* x, A* mean, A* variance) {
  const int64_t width = blur.scale->width, n = blur.scale->inner_size();
  blur_rows<K>(blur, x);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) mean[i] = weighted<K>(blur, blur.rows + i, width);
  multiply(blur, x, x);
  blur_rows<K>(blur, blur.products);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A difference = weighted<K>(blur, blur.rows + i, width) - mean[i] * mean[i];
    // rounding can push a small difference below 0
    variance[i] = difference < 0 ? A(0) : difference;
  }
}

// One plane of each member of a pair.
template <class A>
struct Planes {
  const A *x, *y, *x_mean, *y_mean, *x_variance, *y_variance;
  A x_pivot, y_pivot;
};

// Sum over the pixels where the whole window fits, and only these: a row in A, rows in double.
template <class A>
DORI_INLINE double inner_sum(const Scale& scale, const A* x) {
  double total = 0;
  for (int64_t r = 0; r < scale.inner_height; ++r, x += scale.width) {
    A sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < scale.inner_width; ++c) sum += x[c];
    total += sum;
  }
  return total;
}

// Sum over one plane; with Luminance the full similarity, without it contrast and structure.
template <int K, bool Luminance, class A>
DORI_INLINE double similarity_of(const Blur<A>& blur, const Planes<A>& at, A c1, A c2) {
  const int64_t width = blur.scale->width, n = blur.scale->inner_size();
  multiply(blur, at.x, at.y);
  blur_rows<K>(blur, blur.products);
#pragma omp simd
  for (int64_t i = 0; i < n; ++i) {
    const A covariance = weighted<K>(blur, blur.rows + i, width) - at.x_mean[i] * at.y_mean[i];
    // contrast and structure
    A upper = 2 * covariance + c2;
    A lower = at.x_variance[i] + at.y_variance[i] + c2;
    if constexpr (Luminance) {
      // luminance takes true means: pivots back on
      const A a = at.x_mean[i] + at.x_pivot, b = at.y_mean[i] + at.y_pivot;
      upper *= 2 * a * b + c1;
      lower *= a * a + b * b + c1;
    }
    // products have been blurred and may be overwritten
    blur.products[i] = upper / lower;
  }
  return inner_sum(*blur.scale, blur.products);
}

// target_clones cannot be put on templates, so each element type gets a plain function.
#define DORI_CENTER(T, A)                                          \
  DORI_SIMD A center(A* to, const T* x, int64_t n, bool rescale) { \
    return center_plane(to, x, n, rescale);                        \
  }
DORI_CENTER(float, float)
DORI_CENTER(double, double)
DORI_CENTER(bfloat16, float)
DORI_CENTER(float16, float)
#undef DORI_CENTER

#define DORI_PLANES(A)                                                                \
  DORI_SIMD Extent<A> extent(const A* x, int64_t n) { return extent_of(x, n); }       \
  DORI_SIMD void pool(A* to, const A* x, const Scale& scale, int64_t width) {         \
    pool_plane(to, x, scale, width);                                                  \
  }                                                                                   \
  DORI_SIMD void moments(const Blur<A>& blur, const A* x, A* mean, A* variance) {     \
    with_window(blur.kernel_size, [&](auto k) __attribute__((always_inline)) {        \
      moments_of<k()>(blur, x, mean, variance);                                       \
    });                                                                               \
  }                                                                                   \
  DORI_SIMD double contrast(const Blur<A>& blur, const Planes<A>& at, A c1, A c2) {   \
    return with_window(blur.kernel_size, [&](auto k) __attribute__((always_inline)) { \
      return similarity_of<k(), false>(blur, at, c1, c2);                             \
    });                                                                               \
  }                                                                                   \
  DORI_SIMD double similarity(const Blur<A>& blur, const Planes<A>& at, A c1, A c2) { \
    return with_window(blur.kernel_size, [&](auto k) __attribute__((always_inline)) { \
      return similarity_of<k(), true>(blur, at, c1, c2);                              \
    });                                                                               \
  }
DORI_PLANES(float)
DORI_PLANES(double)
#undef DORI_PLANES

// Scratch for the largest scale serves all of them.
template <class A>
Blur<A> blur_with(const MsSsim& task, std::vector<A>& scratch) {
  const Scale& largest = task.scale[0];
  const int64_t plane = largest.height * largest.width;
  scratch.resize(2 * plane);
  Blur<A> blur{nullptr, task.kernel_size, {}, scratch.data(), scratch.data() + plane};
  for (int i = 0; i < task.kernel_size; ++i) blur.window[i] = static_cast<A>(task.window[i]);
  return blur;
}

// Fills the workspace of one image, from the finest scale to the coarsest.
template <class T, class A = accumulate_t<T>>
void fill_image(const MsSsim& task, int64_t group, int64_t image, Blur<A>& blur) {
  const T* from =
      static_cast<const T*>(task.maps) + group * task.group_stride + image * task.image_stride;
  for (int s = 0; s < task.scales; ++s) {
    const Scale& scale = task.scale[s];
    const Image<A> to = image_at<A>(task, image, s);
    const Image<A> above = image_at<A>(task, image, std::max(0, s - 1));
    const int64_t plane = scale.height * scale.width;
    blur.scale = &scale;
    *to.extent = {std::numeric_limits<A>::infinity(), -std::numeric_limits<A>::infinity()};
    A poison = 0;
    for (int64_t c = 0; c < task.channels; ++c) {
      A* x = to.planes + c * plane;
      // centered once; a mean of 2 x 2 leaves the pivot valid at coarser scales
      if (s == 0) {
        to.pivot[c] = center(x, from + c * plane, plane, task.rescale);
      } else {
        const Scale& finer = task.scale[s - 1];
        pool(x, above.planes + c * finer.height * finer.width, scale, finer.width);
        to.pivot[c] = above.pivot[c];
      }
      moments(blur, x, to.mean + c * scale.inner_size(), to.variance + c * scale.inner_size());
      // the least and the largest true value of all channels, for the data range
      const Extent<A> here = extent(x, plane);
      to.extent->low = std::min(to.extent->low, here.low + to.pivot[c]);
      to.extent->high = std::max(to.extent->high, here.high + to.pivot[c]);
      poison += here.low - here.high;
    }
    // minimum and maximum skip a NaN; the difference of the ends does not
    if (std::isnan(poison)) to.extent->low = to.extent->high = poison;
  }
}

// The larger range of values among first and second members of the pairs, NaN where nothing has
// contrast or a value is not finite.
template <class A>
A data_range(const MsSsim& task, int s) {
  A low[2], high[2], poison = 0;
  for (int member = 0; member < 2; ++member) {
    low[member] = std::numeric_limits<A>::infinity();
    high[member] = -low[member];
    for (int64_t k = 0; k < task.pair_count; ++k) {
      const Extent<A>& extent = *image_at<A>(task, task.pairs[2 * k + member], s).extent;
      low[member] = std::min(low[member], extent.low);
      high[member] = std::max(high[member], extent.high);
      poison += extent.low - extent.high;
    }
  }
  const A range = std::max(high[0] - low[0], high[1] - low[1]);
  const bool defined = range > 0 && std::isfinite(poison);
  return defined ? range : std::numeric_limits<A>::quiet_NaN();
}

// MS-SSIM of one pair: the product over scales of mean^beta, negative means counted as 0.
template <class A>
A compare(const MsSsim& task, const int64_t* pair, const A* range, Blur<A>& blur) {
  double result = 1;
  for (int s = 0; s < task.scales; ++s) {
    const Scale& scale = task.scale[s];
    const Image<A> x = image_at<A>(task, pair[0], s), y = image_at<A>(task, pair[1], s);
    const int64_t plane = scale.height * scale.width;
    const int64_t inner = scale.inner_size();
    const A root_c1 = static_cast<A>(kSsimK1) * range[s],
            root_c2 = static_cast<A>(kSsimK2) * range[s];
    blur.scale = &scale;
    double sum = 0;
    for (int64_t c = 0; c < task.channels; ++c) {
      const Planes<A> at{
          x.planes + c * plane,   y.planes + c * plane,   x.mean + c * inner, y.mean + c * inner,
          x.variance + c * inner, y.variance + c * inner, x.pivot[c],         y.pivot[c]};
      const A c1 = root_c1 * root_c1, c2 = root_c2 * root_c2;
      // luminance counts at the coarsest scale only
      sum += s + 1 == task.scales ? similarity(blur, at, c1, c2) : contrast(blur, at, c1, c2);
    }
    const double mean =
        sum / static_cast<double>(task.channels * scale.inner_height * scale.inner_width);
    result *= mean <= 0 ? 0 : std::pow(mean, scale.beta);
  }
  return static_cast<A>(result);
}

}  // namespace

void ms_ssim_images(const MsSsim& task, int64_t group, int64_t first, int64_t last) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    std::vector<accumulate_t<T>> scratch;
    Blur<accumulate_t<T>> blur = blur_with(task, scratch);
    for (int64_t image = first; image < last; ++image) fill_image<T>(task, group, image, blur);
  });
}

void ms_ssim_pairs(const MsSsim& task, int64_t group, int64_t first, int64_t last) {
  dispatch<Types>(task.dtype, [&]<class T>(T) {
    using A = accumulate_t<T>;
    std::vector<A> scratch;
    Blur<A> blur = blur_with(task, scratch);
    A range[kMaxScales];
    // the same range for all pairs of the group
    for (int s = 0; s < task.scales; ++s) range[s] = data_range<A>(task, s);
    A* to = static_cast<A*>(task.similarity) + group * task.pair_count;
    for (int64_t k = first; k < last; ++k) to[k] = compare(task, task.pairs + 2 * k, range, blur);
  });
}

}  // namespace dori::cpu
