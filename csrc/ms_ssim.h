// Multi-scale structural similarity of pairs of images within groups.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

constexpr int kMaxScales = 8;
constexpr int kMaxWindow = 31;
constexpr double kSsimK1 = 0.01, kSsimK2 = 0.03;

// One scale: size of a plane, and of the part of it around which the whole window fits.
struct Scale {
  int64_t height, width, inner_height, inner_width;
  double beta;
};

// A, the workspace's type, is float (double for float64 maps). Per image and scale the workspace
// holds C planes, C inner planes of means, C inner planes of variances, and the least and the
// largest value. It serves one group at a time.
struct MsSsim {
  DType dtype;
  const void* maps;      // [groups, images, C, H, W], images contiguous
  const int64_t* pairs;  // [pairs, 2]
  void* workspace;       // A [images, image_size()]
  void* similarity;      // A [groups, pairs]
  int64_t groups, images, channels, pair_count;
  int64_t group_stride, image_stride;
  bool rescale;
  int scales, kernel_size;
  Scale scale[kMaxScales];
  double window[kMaxWindow];

  int64_t scale_size(int s) const {
    const Scale& at = scale[s];
    return channels * (at.height * at.width + 2 * at.inner_height * at.inner_width) + 2;
  }
  int64_t image_size() const {
    int64_t size = 0;
    for (int s = 0; s < scales; ++s) size += scale_size(s);
    return size;
  }
};

namespace cpu {
// Fills the workspace for images [first, last) of a group, then compares pairs [first, last) of it.
void ms_ssim_images(const MsSsim& task, int64_t group, int64_t first, int64_t last);
void ms_ssim_pairs(const MsSsim& task, int64_t group, int64_t first, int64_t last);
}  // namespace cpu

}  // namespace dori
