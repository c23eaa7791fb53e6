// dori_fast._info: facts of this build. It loads even if torch does not.
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

#include "cpu/simd.h"

namespace py = pybind11;

namespace {

py::tuple words(const std::string& text) {
  py::list found;
  std::istringstream stream(text);
  for (std::string word; stream >> word;) found.append(word);
  return py::tuple(found);
}

// The clone that the loader picks on this machine.
const char* simd_in_use() {
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("x86-64-v4")) return "x86-64-v4";
  if (__builtin_cpu_supports("x86-64-v3")) return "x86-64-v3";
  return "x86-64";
#else
  return "baseline";
#endif
}

}  // namespace

PYBIND11_MODULE(_info, m) {
  m.doc() = "Build facts of the compiled part of dori_fast.";
  m.attr("version") = DORI_VERSION;
  m.attr("compiler") = DORI_COMPILER;
  m.attr("build_type") = DORI_BUILD_TYPE;
  m.attr("cxx_standard") = static_cast<long>(__cplusplus);
  m.attr("simd_levels") = words(DORI_SIMD_LEVELS);
  m.attr("cuda_version") = DORI_CUDA_VERSION;
  m.attr("cuda_archs") = words(DORI_CUDA_ARCHS);
  m.def("simd_in_use", &simd_in_use, "The instruction set level that this machine's CPU selects.");
}
