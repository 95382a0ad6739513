// Makes the lists of the direct convolution on CUDA in parts.
#pragma once

#include <cstddef>

#include "cuda/conv/conv_lists.hpp"

namespace dcls::test {

/// While it lives, lists of more than so many bytes are made in parts.
class ListLimit {
 public:
  explicit ListLimit(std::size_t bytes) : before_(cuda::most_list_bytes) {
    cuda::most_list_bytes = bytes;
  }
  ~ListLimit() { cuda::most_list_bytes = before_; }
  ListLimit(const ListLimit&) = delete;
  ListLimit& operator=(const ListLimit&) = delete;

 private:
  std::size_t before_;
};

}  // namespace dcls::test
