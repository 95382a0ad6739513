// The layers whose CUDA kernels are modelled.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dcls/layer.hpp"

namespace dcls::model {

struct Layer {
  std::string name;
  int ndim;
  std::int64_t batch, in_channels, out_channels, groups;
  std::vector<std::int64_t> size, kernel;
  Version version;
  std::int64_t elements;
  enum class Kind {
    kLayer,  ///< a module's own operator
    kParts,  ///< the functions for construct and convolution, one after the other
    kIm2col  ///< the module that samples its input, and builds no kernel
  } kind = Kind::kLayer;
};

inline std::vector<Layer> layers() {
  std::vector<Layer> list;
  struct Stage {
    std::int64_t channels, size;
  };
  struct Kernel {
    std::int64_t size;
    Version version;
    std::int64_t elements;
    const char* name;
  };
  // ConvNeXt-T with kernels as in the papers on DCLS.
  for (const Kernel& k :
       {Kernel{17, Version::kV1, 34, "v1"}, Kernel{23, Version::kGauss, 26, "gauss"}}) {
    for (const Stage& s : {Stage{96, 56}, Stage{192, 28}, Stage{384, 14}, Stage{768, 7}}) {
      const std::string side = std::to_string(s.size), width = std::to_string(k.size);
      list.push_back({std::to_string(s.channels) + "@" + side + "x" + side + " " + width + "x" +
                          width + " " + k.name,
                      2,
                      128,
                      s.channels,
                      s.channels,
                      s.channels,
                      {s.size, s.size},
                      {k.size, k.size},
                      k.version,
                      k.elements});
    }
  }
  const std::vector<Layer> stages(list.begin(), list.begin() + 4);
  for (Layer stage : stages) {
    stage.name = "parts " + stage.name;
    stage.kind = Layer::Kind::kParts;
    list.push_back(stage);
  }
  list.push_back({"audio 64@16000 127 v1", 1, 32, 64, 64, 64, {16000}, {127}, Version::kV1, 16});
  list.push_back(
      {"delays 256 to 256 @100 25 gauss", 1, 128, 256, 256, 1, {100}, {25}, Version::kGauss, 1});
  list.push_back(
      {"volume 32@32x32x32 7x7x7 v1", 3, 8, 32, 32, 32, {32, 32, 32}, {7, 7, 7}, Version::kV1, 24});
  list.push_back({"im2col 96@56x56 17x17 v1",
                  2,
                  1,
                  96,
                  96,
                  96,
                  {56, 56},
                  {17, 17},
                  Version::kV1,
                  34,
                  Layer::Kind::kIm2col});
  return list;
}

/// Layers of the same kernels, so small that all of their blocks can be run.
inline std::vector<Layer> small_layers() {
  return {
      {"small 6@20x23 9x7 v1", 2, 2, 6, 6, 6, {20, 23}, {9, 7}, Version::kV1, 5},
      {"small 5@9x24 3x21 v1", 2, 2, 5, 5, 5, {9, 24}, {3, 21}, Version::kV1, 4},
      {"small 5@9x8 5x5 gauss", 2, 3, 5, 5, 5, {9, 8}, {5, 5}, Version::kGauss, 3},
      {"small 4 to 6 @30 9 gauss", 1, 2, 4, 6, 1, {30}, {9}, Version::kGauss, 2},
      {"small 3@6x7x8 3x3x5 v1", 3, 2, 3, 3, 3, {6, 7, 8}, {3, 3, 5}, Version::kV1, 4},
      {"small parts 4@19x17 7x9 v1",
       2,
       3,
       4,
       4,
       4,
       {19, 17},
       {7, 9},
       Version::kV1,
       5,
       Layer::Kind::kParts},
      {"small im2col 3@11x10 5x7 v1",
       2,
       2,
       3,
       3,
       3,
       {11, 10},
       {5, 7},
       Version::kV1,
       4,
       Layer::Kind::kIm2col},
  };
}

}  // namespace dcls::model
