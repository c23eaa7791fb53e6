// Multi-scale structural similarity of pairs of images within groups.
#pragma once

#include "dtype.h"

#include <cstdint>

namespace dori {

constexpr int kMaxScales = 8;
constexpr int kMaxWindow = 11;
constexpr double kSsimK1 = 0.01, kSsimK2 = 0.03;

// One scale: the size of a plane, and of the part of it where the whole window fits, from its first
// pixel on. The moments of that part lie as far apart as the pixels they belong to.
struct Scale {
  int64_t height, width, inner_height, inner_width;
  double beta;

  int64_t inner_size() const { return (inner_height - 1) * width + inner_width; }
};

// A, the workspace's type, is float (double for float64 maps). Per image and scale the workspace
// holds C planes around their means, the means and the variances of C planes, C pivots (plane plus
// pivot gives true values), and the least and the largest true value. It serves one group at a
// time.
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
    return channels * (at.height * at.width + 2 * at.inner_size() + 1) + 2;
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
