// Runs a few blocks of each CUDA kernel of a training step, from its SASS, and prints what they
// cost. cuda_model.py compiles the kernels, calls this, and makes tables of it.
//
//   cuda_model --kernels          prints the kernels that the layers launch
//   cuda_model --sass FILE...     prints a line of JSON for each launch
//   --blocks N                    blocks of a launch to run
//   --only TEXT                   the layers with this in their name, dtype and layout
#include <cxxabi.h>
#include <dlfcn.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <iostream>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <vector>

#include "cuda/cuda_backend.hpp"
#include "cuda_host.hpp"
#include "cuda_sass/operations.hpp"
#include "interpolation/interpolation.hpp"
#include "layers.hpp"

using namespace dcls;
using host_cuda::GuardedBuffer;

namespace {

struct Options {
  bool kernels = false;
  std::vector<std::string> sass;
  std::uint64_t blocks = 3;
  std::string only;
};

/// The name of a kernel with its template arguments: conv_forward<float, false>.
std::string template_name(const std::string& symbol) {
  int status = 0;
  char* const text = abi::__cxa_demangle(symbol.c_str(), nullptr, nullptr, &status);
  if (status != 0) throw std::runtime_error("cannot demangle " + symbol);
  const std::string whole(text);
  std::free(text);
  // "void dcls::cuda::name<...>(...)": up to the parenthesis outside of the brackets.
  std::size_t end = 0;
  int depth = 0;
  for (; end < whole.size() && (depth > 0 || whole[end] != '('); ++end) {
    if (whole[end] == '<') ++depth;
    if (whole[end] == '>') --depth;
  }
  const std::string name = whole.substr(0, end);
  const std::size_t space = name.find(' ');
  return space < name.find('<') ? name.substr(space + 1) : name;
}

std::string kernel_name(const void* kernel) {
  Dl_info info{};
  if (dladdr(kernel, &info) == 0 || info.dli_saddr != kernel) {
    throw std::runtime_error("a kernel has no symbol: is cuda_model linked with its symbols?");
  }
  return template_name(info.dli_sname);
}

/// The blocks of a grid that are run: `count` of them, evenly spaced.
std::vector<std::uint64_t> sample(std::uint64_t grid, std::uint64_t count) {
  std::vector<std::uint64_t> blocks;
  count = std::min(grid, count);
  for (std::uint64_t i = 0; i < count; ++i) blocks.push_back((2 * i + 1) * grid / (2 * count));
  return blocks;
}

/// A launch whose blocks took at most so many warp instructions is run whole on the host, because
/// later kernels read what it writes: lists of cells, taps.
constexpr double kRunWhole = 3e8;

class Model {
 public:
  explicit Model(const Options& options) : options_(options) {
    for (const std::string& path : options.sass) {
      std::ifstream file(path);
      if (!file) throw std::runtime_error("cannot read " + path);
      for (auto& [symbol, kernel] : cuda_sass::read_program(file)) {
        program_[template_name(symbol)] = std::move(kernel);
      }
    }
  }

  void begin(const std::string& head) { head_ = head; }
  /// What the next launches are for.
  void begin_pass(const char* pass) { pass_ = pass; }
  const std::set<std::string>& kernels() const { return kernels_; }

  bool take(const host_cuda::ObservedLaunch& launch) {
    const std::string name = kernel_name(launch.kernel);
    kernels_.insert(name);
    if (options_.kernels) return false;
    const auto found = program_.find(name);
    if (found == program_.end()) throw std::runtime_error("no SASS of " + name);
    const cuda_sass::Kernel& kernel = found->second;
    cuda_sass::LaunchShape shape;
    shape.grid = launch.grid.x;
    shape.threads = launch.block.x;
    shape.shared_bytes = launch.shared_bytes;
    shape.parameters = launch.parameters;
    cuda_sass::Machine machine(kernel, shape);
    const std::vector<std::uint64_t> blocks = sample(launch.grid.x, options_.blocks);
    for (const std::uint64_t block : blocks) machine.run_block(block);
    const double issued = print(name, kernel, shape, machine.counts(), blocks.size());
    return issued / static_cast<double>(blocks.size()) * launch.grid.x <= kRunWhole &&
           name.find("conv_forward") == std::string::npos;
  }

 private:
  double print(const std::string& name, const cuda_sass::Kernel& kernel,
               const cuda_sass::LaunchShape& shape, const cuda_sass::Counts& counts,
               std::size_t blocks) {
    std::map<std::string, cuda_sass::Count> by_name;
    std::uint64_t issued = 0, spills = 0;
    for (std::size_t i = 0; i < counts.size(); ++i) {
      const cuda_sass::Instruction& in = kernel.code[i];
      if (in.spills) ++spills;
      issued += counts[i].issued;
      std::string key = in.name;
      for (const std::string& m : in.modifiers) key += "." + m;
      by_name[key] += counts[i];
    }
    std::ostringstream out;
    out << "{" << head_ << ", \"pass\": \"" << pass_ << "\", \"kernel\": \"" << name
        << "\", \"grid\": " << shape.grid << ", \"threads\": " << shape.threads
        << ", \"shared\": " << kernel.shared + shape.shared_bytes
        << ", \"registers\": " << kernel.registers << ", \"stack\": " << kernel.stack
        << ", \"spill_instructions\": " << spills << ", \"code\": " << counts.size()
        << ", \"blocks\": " << blocks << ", \"counts\": {";
    const char* comma = "";
    for (const auto& [key, c] : by_name) {
      // Of what a kernel has, and may not have, the unused count as well.
      if (c.issued == 0 && key[0] != 'D' && key.find("F64") == std::string::npos) continue;
      out << comma << "\"" << key << "\": [" << c.issued << ", " << c.lanes << ", " << c.accesses
          << ", " << c.wavefronts << ", " << c.least << ", " << c.sectors << "]";
      comma = ", ";
    }
    out << "}}";
    std::cout << out.str() << std::endl;
    return static_cast<double>(issued);
  }

  const Options& options_;
  std::map<std::string, cuda_sass::Kernel> program_;
  std::set<std::string> kernels_;
  std::string head_;
  const char* pass_ = "";
};

std::int64_t product(const std::vector<std::int64_t>& values) {
  std::int64_t result = 1;
  for (const std::int64_t v : values) result *= v;
  return result;
}

/// The parameters of a layer: positions spread over the kernel, where training ends.
struct Parameters {
  GuardedBuffer<float> weight, position, sigma;

  Parameters(const model::Layer& layer, std::int64_t rows)
      : weight(values(rows, layer, 1,
                      [](auto& random, int) { return std::normal_distribution<float>()(random); }),
               "weight", host_cuda::Guard::kBegin),
        position(values(rows, layer, layer.ndim,
                        [&](auto& random, int d) {
                          const auto half =
                              static_cast<float>(layer.kernel[static_cast<std::size_t>(d)] - 1) / 2;
                          return std::uniform_real_distribution<float>(-half, half)(random);
                        }),
                 "position", host_cuda::Guard::kBegin),
        sigma(values(rows, layer, layer.version == Version::kGauss ? layer.ndim : 0,
                     [](auto&, int) { return 0.23f; }),
              "sigma", host_cuda::Guard::kBegin) {}

 private:
  template <typename Draw>
  static std::vector<float> values(std::int64_t rows, const model::Layer& layer, int axes,
                                   const Draw& draw) {
    std::mt19937 random(static_cast<unsigned>(axes));
    std::vector<float> result;
    for (int d = 0; d < axes; ++d) {
      for (std::int64_t i = 0; i < rows * layer.elements; ++i) result.push_back(draw(random, d));
    }
    return result;
  }
};

LayerArgs layer_args(const model::Layer& layer, DType dtype, Layout layout) {
  LayerArgs args;
  ConvArgs& conv = args.conv;
  ConstructArgs& construct = args.construct;
  conv.dtype = dtype;
  conv.layout = layout;
  conv.ndim = construct.ndim = layer.ndim;
  conv.batch = layer.batch;
  conv.in_channels = layer.in_channels;
  conv.out_channels = layer.out_channels;
  conv.groups = layer.groups;
  construct.version = layer.version;
  construct.dtype = DType::kFloat32;
  construct.rows = layer.out_channels * layer.in_channels / layer.groups;
  construct.elements = layer.elements;
  construct.sigma_min = layer.version == Version::kGauss ? 0.27 : 0.0;
  for (std::size_t d = 0; d < layer.size.size(); ++d) {
    conv.input_size[d] = conv.output_size[d] = layer.size[d];
    conv.kernel_size[d] = construct.size[d] = layer.kernel[d];
    conv.padding[d] = layer.kernel[d] / 2;
  }
  args.for_input = args.for_parameters = true;
  return args;
}

/// Zeros in memory that is taken when it is touched.
GuardedBuffer<unsigned char> sparse(std::size_t bytes, const char* name) {
  return GuardedBuffer<unsigned char>::sparse(bytes, name, host_cuda::Guard::kBegin);
}

void run_layer(const model::Layer& layer, DType dtype, Layout layout, Model& model,
               const std::string& head) {
  LayerArgs args = layer_args(layer, dtype, layout);
  Parameters p(layer, args.construct.rows);
  args.construct.weight = p.weight.data();
  args.construct.position = p.position.data();
  args.construct.sigma = p.sigma.size() > 0 ? p.sigma.data() : nullptr;

  Execution where;
  std::vector<float> kernel(static_cast<std::size_t>(args.construct.rows * product(layer.kernel)));
  dcls::construct(args.construct, kernel.data(), where);
  std::int64_t cells = 0;
  for (const float cell : kernel) cells += cell != 0.0f ? 1 : 0;
  const std::size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  const std::int64_t points = product(layer.size);
  const auto inputs = static_cast<std::size_t>(layer.batch * layer.in_channels * points) * bytes;
  const auto outputs = static_cast<std::size_t>(layer.batch * layer.out_channels * points) * bytes;
  model.begin(head + ", \"input_bytes\": " + std::to_string(inputs) +
              ", \"output_bytes\": " + std::to_string(outputs) +
              ", \"products\": " + std::to_string(cells * layer.batch * points));

  where.device = DeviceType::kCuda;
  auto input = sparse(inputs, "input"), grad_input = sparse(inputs, "grad_input");
  auto output = sparse(outputs, "output"), grad_output = sparse(outputs, "grad_output");
  auto bias = sparse(static_cast<std::size_t>(layer.out_channels) * bytes, "bias");
  auto grad_bias = sparse(static_cast<std::size_t>(layer.out_channels) * bytes, "grad_bias");
  GuardedBuffer<float> grad_weight(p.weight.size()), grad_position(p.position.size()),
      grad_sigma(p.sigma.size());
  auto saved = sparse(cuda::layer_saved(args, where), "saved");
  auto forward = sparse(cuda::layer_workspace(args, LayerPass::kForward, where), "workspace");
  auto backward = sparse(cuda::layer_workspace(args, LayerPass::kBackward, where), "workspace");
  model.begin_pass("forward");
  cuda::layer_forward(args, input.data(), bias.data(), output.data(), saved.data(), forward.data(),
                      where);
  LayerGrads grads;
  grads.input = grad_input.data();
  grads.bias = grad_bias.data();
  grads.weight = grad_weight.data();
  grads.position = grad_position.data();
  grads.sigma = p.sigma.size() > 0 ? grad_sigma.data() : nullptr;
  model.begin_pass("backward");
  cuda::layer_backward(args, grad_output.data(), input.data(), grads, saved.data(), backward.data(),
                       where);
}

void run_im2col(const model::Layer& layer, DType dtype, Model& model, const std::string& head) {
  Parameters p(layer, layer.in_channels);
  Im2colArgs args;
  args.version = layer.version;
  args.dtype = dtype;
  args.ndim = layer.ndim;
  std::int64_t points = product(layer.size);
  for (std::size_t d = 0; d < layer.size.size(); ++d) {
    args.size[d] = layer.kernel[d];
    args.padding[d] = layer.kernel[d] / 2;
    args.input_size[d] = args.output_size[d] = layer.size[d];
  }
  args.batch = layer.batch;
  args.channels = layer.in_channels;
  args.elements = layer.elements;
  args.channel_stride = points;
  args.batch_stride = points * args.channels;
  args.sigma_min = layer.version == Version::kGauss ? 0.27 : 0.0;
  const std::size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  const auto inputs = static_cast<std::size_t>(args.batch * args.channels * points) * bytes;
  const std::size_t columns_bytes = inputs * static_cast<std::size_t>(args.elements);
  model.begin(head + ", \"input_bytes\": " + std::to_string(inputs) +
              ", \"output_bytes\": " + std::to_string(columns_bytes) + ", \"products\": 0");
  Execution where;
  where.device = DeviceType::kCuda;
  auto input = sparse(inputs, "input"), grad_input = sparse(inputs, "grad_input");
  auto columns = sparse(columns_bytes, "columns");
  args.input = input.data();
  args.position = p.position.data();
  args.sigma = p.sigma.size() > 0 ? p.sigma.data() : nullptr;
  auto workspace = sparse(static_cast<std::size_t>(cuda::im2col_workspace(args)), "workspace");
  model.begin_pass("forward");
  cuda::im2col(args, columns.data(), workspace.data(), where);
  const auto width = static_cast<std::size_t>(1 + 2 * args.ndim);
  GuardedBuffer<float> sums(
      std::vector<float>(static_cast<std::size_t>(args.channels * args.elements) * width));
  GuardedBuffer<float> grad_position(p.position.size());
  Im2colGrads grads;
  grads.input = grad_input.data();
  grads.batch_stride = args.batch_stride;
  grads.channel_stride = args.channel_stride;
  grads.sums = sums.data();
  model.begin_pass("backward");
  cuda::im2col_backward(args, columns.data(), grads, workspace.data(), where);
  model.begin_pass("finish");
  cuda::im2col_finish(args, sums.data(), 1, grad_position.data(), nullptr, workspace.data(), where);
}

int run(const Options& options) {
  Model model(options);
  host_cuda::launch_observer = [&](const host_cuda::ObservedLaunch& launch) {
    return model.take(launch);
  };
  for (const model::Layer& layer : model::layers()) {
    for (const DType dtype : {DType::kFloat32, DType::kBFloat16}) {
      for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
        // Of one axis torch has one layout, and im2col has one.
        if (layout == Layout::kChannelsLast && (layer.ndim == 1 || layer.im2col)) continue;
        const std::string dtype_name = dtype == DType::kFloat32 ? "float32" : "bfloat16";
        const std::string layout_name = layout == Layout::kChannelsLast ? "channels_last" : "NCHW";
        const std::string text = layer.name + ", " + dtype_name + ", " + layout_name;
        if (text.find(options.only) == std::string::npos) continue;
        const std::string head = "\"layer\": \"" + layer.name + "\", \"dtype\": \"" + dtype_name +
                                 "\", \"layout\": \"" + layout_name + "\"";
        if (layer.im2col) {
          run_im2col(layer, dtype, model, head);
        } else {
          run_layer(layer, dtype, layout, model, head);
        }
      }
    }
  }
  if (options.kernels) {
    for (const std::string& name : model.kernels()) std::cout << name << "\n";
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const bool more = i + 1 < argc;
    if (flag == "--kernels") {
      options.kernels = true;
    } else if (flag == "--blocks" && more) {
      options.blocks = std::stoull(argv[++i]);
    } else if (flag == "--only" && more) {
      options.only = argv[++i];
    } else if (flag == "--sass" && more) {
      options.sass.emplace_back(argv[++i]);
    } else {
      std::cerr << "cuda_model: unknown option " << flag << "\n";
      return 2;
    }
  }
  try {
    return run(options);
  } catch (const std::exception& e) {
    std::cerr << "cuda_model: " << e.what() << "\n";
    return 1;
  }
}
