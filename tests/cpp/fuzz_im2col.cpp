// Fuzzes the im2col operator of the C++ API: see fuzz.hpp.
#include <algorithm>
#include <cstdint>
#include <limits>

#include "core/dtype.hpp"
#include "dcls/im2col.hpp"
#include "fuzz.hpp"
#include "interpolation/interpolation.hpp"

using namespace dcls;
using namespace dcls::fuzz;

namespace {

constexpr std::int64_t kMost = std::numeric_limits<std::int64_t>::max();

bool has_sigma(const Im2colArgs& args) {
  return is_version(args.version) && interp::has_width(args.version);
}

/// What the documentation of the API refuses of sizes that are small, written down a second time;
/// first what im2col_finish reads.
bool has_valid_elements(const Im2colArgs& args, const Execution& where) {
  if (!is_version(args.version) || !is_dtype(args.dtype) || !is_valid(where)) {
    return false;
  }
  for (int d = 0; d < args.ndim; ++d) {
    if (args.size[d] < 1) return false;
  }
  const bool needed = args.channels > 0 && args.elements > 0;
  if (needed && args.position == nullptr) return false;
  if (!has_sigma(args)) return args.sigma == nullptr;
  return (!needed || args.sigma != nullptr) && args.sigma_min > 0 &&
         args.sigma_min <= std::numeric_limits<double>::max();
}

bool is_valid_stride(std::int64_t stride, std::int64_t count, std::int64_t least) {
  return count <= 1 || between(stride, least, kMost / 16 / count);
}

bool is_valid_im2col(const Im2colArgs& args) {
  constexpr std::int64_t kPlace = std::int64_t{1} << 30;
  for (int d = 0; d < args.ndim; ++d) {
    if (!between(args.stride[d], 1, kPlace) || args.output_size[d] < 1 ||
        !between(args.padding[d], -2 * kPlace, 2 * kPlace)) {
      return false;
    }
  }
  return is_valid_stride(args.batch_stride, args.batch, 0) &&
         is_valid_stride(args.channel_stride, args.channels, 0);
}

/// Values from the first of a tensor with strides to its last, or -1 if those are too many.
std::int64_t small_extent(const Im2colArgs& args, std::int64_t plane, std::int64_t batch_stride,
                          std::int64_t channel_stride) {
  if (args.batch == 0 || args.channels == 0 || plane == 0) return 0;
  const std::int64_t batches = args.batch > 1 ? small_product({args.batch - 1, batch_stride}) : 0;
  const std::int64_t channels =
      args.channels > 1 ? small_product({args.channels - 1, channel_stride}) : 0;
  if (batches < 0 || channels < 0) return -1;
  return batches + channels + plane;
}

void run(const std::uint8_t* data, std::size_t size) {
  ++counts.runs;
  Reader reader(data, size);
  Im2colArgs args;
  args.version = static_cast<Version>(reader.integer(0, kVersionCount - 1));
  args.dtype = static_cast<DType>(reader.integer(0, kDTypeCount - 1));
  args.ndim = static_cast<int>(reader.integer(1, 3));
  args.any_output_size = true;
  args.batch = reader.integer(0, 3);
  args.channels = reader.integer(0, 3);
  args.elements = reader.integer(0, 4);
  const int axes = between(args.ndim, 1, kMaxDims) ? args.ndim : 1;
  const int longest = axes == 1 ? 60 : axes == 2 ? 18 : 7;
  for (int d = 0; d < axes; ++d) {
    args.size[d] = reader.integer(1, longest);
    args.input_size[d] = reader.integer(0, longest);
    args.output_size[d] = reader.integer(1, longest);
    if (reader.byte() % 2 == 0) args.stride[d] = reader.integer(1, 4);
    args.padding[d] = reader.integer(-2, longest);
  }
  const std::uint8_t kind = reader.byte();
  args.sigma_min = kind < 16 ? numeric::bit_cast<double>(reader.bits()) : (kind - 15) / 64.0;
  const Execution where = read_execution(reader);
  const std::size_t bytes = value_bytes(args.dtype);
  const std::size_t position_bytes = std::max<std::size_t>(bytes, 4);

  const bool has_axes = between(args.ndim, 1, kMaxDims);
  const std::int64_t plane = has_axes ? small_points(args.input_size, args.ndim) : -1;
  const std::int64_t points = has_axes ? small_points(args.output_size, args.ndim) : -1;
  const std::int64_t taps = has_axes ? small_points(args.size, args.ndim) : -1;
  // Dense, apart, or whatever comes.
  const auto read_stride = [&](std::int64_t dense) {
    const int how = reader.byte();
    if (how >= 16) return dense < 0 ? 0 : dense + (how < 64 ? how % 3 : 0);
    return std::max(reader.integer(0, 100), kDenseStride + 1);
  };
  args.channel_stride = read_stride(plane);
  args.batch_stride = read_stride(small_product({args.channels, args.channel_stride}));
  Im2colGrads grads;
  grads.channel_stride = read_stride(plane);
  grads.batch_stride = read_stride(small_product({args.channels, grads.channel_stride}));
  grads.parts = reader.integer(1, 3);
  grads.sigma = reader.byte() % 4 != 0 && has_sigma(args);
  const std::uint8_t nulls = reader.byte();  // one in 16 of each

  const std::int64_t pairs = small_product({args.channels, args.elements});
  const std::int64_t places = small_product({args.ndim, pairs});
  const std::int64_t columns_size = small_product({args.batch, pairs, points});
  const std::int64_t sums_size = small_product({grads.parts, pairs, 1 + 2 * std::int64_t{axes}});
  const std::int64_t extent = small_extent(args, plane, args.batch_stride, args.channel_stride);
  const std::int64_t grad_extent =
      small_extent(args, plane, grads.batch_stride, grads.channel_stride);
  const bool empty = args.batch == 0 || args.channels == 0 || args.elements == 0;
  if (plane < 0 || points < 0 || taps < 0 || places < 0 || columns_size < 0 || sums_size < 0 ||
      extent < 0 || grad_extent < 0) {
    // With null pointers these must be refused, unless there is nothing to compute.
    const bool done = outcome(where, [&] { im2col(args, nullptr, nullptr, where); });
    if (done && !empty) stop("null pointers were taken");
    outcome(where, [&] { im2col_backward(args, nullptr, grads, nullptr, where); });
    outcome(where,
            [&] { im2col_finish(args, nullptr, grads.parts, nullptr, nullptr, nullptr, where); });
    ++counts.wild;
    return;
  }

  Buffer input(extent, bytes), position(places, position_bytes), sigma(places, position_bytes);
  Buffer columns(columns_size, bytes), grad_columns(columns_size, bytes);
  Buffer grad_input(grad_extent, bytes), sums(sums_size, position_bytes);
  Buffer grad_position(places, position_bytes), grad_sigma(places, position_bytes);
  if (nulls % 16 != 1) args.input = input.fill(reader).data();
  if (nulls % 16 != 2) args.position = position.fill(reader).data();
  if (has_sigma(args) != (nulls % 16 == 3)) args.sigma = sigma.fill(reader).data();
  void* const target = nulls % 16 == 4 ? nullptr : columns.data();
  const void* const source = nulls % 16 == 5 ? nullptr : grad_columns.fill(reader).data();
  const bool elements = has_valid_elements(args, where);
  const bool valid = elements && is_valid_im2col(args);

  const bool expected = valid && (empty || ((args.input != nullptr || plane == 0) && target));
  if (check_outcome("im2col", expected, where, [&] { im2col(args, target, nullptr, where); })) {
    ++counts.results;
    check_written("the columns", columns);
  }

  const std::uint8_t asked = reader.byte();
  if (asked % 4 != 0) grads.input = grad_input.data();
  if (asked % 8 != 1) grads.sums = sums.zero().data();
  if (asked >= 240) grads.sigma = true;
  const bool nothing = args.batch == 0 || args.channels == 0 || plane == 0 ||
                       (grads.input == nullptr && (grads.sums == nullptr || args.elements == 0));
  const bool apart =
      grads.input == nullptr || (is_valid_stride(grads.batch_stride, args.batch, plane) &&
                                 is_valid_stride(grads.channel_stride, args.channels, plane));
  const bool allowed = valid && (has_sigma(args) || !grads.sigma) && grads.parts >= 1 &&
                       (nothing || (apart && (args.input != nullptr || grads.sums == nullptr) &&
                                    (source != nullptr || args.elements == 0)));
  if (check_outcome("im2col_backward", allowed, where,
                    [&] { im2col_backward(args, source, grads, nullptr, where); })) {
    ++counts.gradients;
    const bool dense = grads.channel_stride == plane &&
                       (args.batch <= 1 || grads.batch_stride == args.channels * plane);
    if (grads.input != nullptr && dense) check_written("the gradient of the input", grad_input);
  }

  const bool of_sigma = has_sigma(args) || asked >= 250;
  const bool given = args.channels == 0 || args.elements == 0 || grads.sums != nullptr;
  const bool finished = elements && grads.parts >= 1 && (has_sigma(args) || !of_sigma) && given;
  if (check_outcome("im2col_finish", finished, where, [&] {
        im2col_finish(args, grads.sums, grads.parts, grad_position.data(),
                      of_sigma ? grad_sigma.data() : nullptr, nullptr, where);
      })) {
    check_written("the gradient of the position", grad_position);
    if (of_sigma) check_written("the gradient of sigma", grad_sigma);
  }
}

}  // namespace

DCLS_FUZZ_MAIN(run, 256)
