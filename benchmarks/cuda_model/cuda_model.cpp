// Runs blocks of the CUDA kernels of a training step from their machine code. cuda_model.py
// compiles the kernels, calls this, and makes tables of it.
//
//   cuda_model --kernels            prints the kernels that the layers launch
//   cuda_model --sass FILE...       prints a line of JSON for each launch: what a few blocks cost
//   cuda_model --verify --sass ...  compares the results of machine code and of the host
//   --blocks N                      blocks of a launch to run
//   --only TEXT                     the layers with this in their name, dtype and layout
#include <cmath>
#include <iostream>
#include <string>
#include <vector>

#include "layer_run.hpp"
#include "parts_run.hpp"

using namespace dcls;
using model::Launches;

namespace {

struct Options {
  Launches::Task task = Launches::Task::kCosts;
  std::vector<std::string> sass;
  std::uint64_t blocks = 2;
  std::string only;
};

double difference(const std::vector<double>& a, const std::vector<double>& b) {
  double error = 0, size = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    error += (a[i] - b[i]) * (a[i] - b[i]);
    size += b[i] * b[i];
  }
  return size > 0 ? std::sqrt(error / size) : std::sqrt(error);
}

/// Runs a step twice, with machine code and on the host, and compares. The compiler of the host
/// may round products where a GPU does not: not bit for bit.
template <typename Run>
bool verify(Run&& machine, Run&& host, double most, Launches& launches, const std::string& name) {
  machine.fill();
  machine.run(launches);
  const auto observer = std::move(host_cuda::launch_observer);
  host_cuda::launch_observer = nullptr;
  host.fill();
  host.run(launches);
  host_cuda::launch_observer = observer;
  const auto found = machine.results(), expected = host.results();
  double worst = 0;
  for (std::size_t i = 0; i < found.size(); ++i) {
    const double error = difference(found[i], expected[i]);
    worst = error >= worst ? error : worst;
    if (std::isnan(error)) worst = error;
    if (std::isnan(worst)) break;
  }
  const bool same = worst < most;
  std::cout << (same ? "verified " : "DIFFERENT ") << name << ": " << worst << std::endl;
  return same;
}

int run(const Options& options) {
  Launches launches(options.task, options.blocks, options.sass);
  host_cuda::launch_observer = [&](const host_cuda::ObservedLaunch& launch) {
    return launches.take(launch);
  };
  const bool verifies = options.task == Launches::Task::kResults;
  bool same = true;
  for (const model::Layer& layer : verifies ? model::small_layers() : model::layers()) {
    for (const model::Operands& operands : model::kOperands) {
      for (const Layout layout : {Layout::kChannelsFirst, Layout::kChannelsLast}) {
        // Of one axis torch has one layout, and im2col has one.
        if (layout == Layout::kChannelsLast &&
            (layer.ndim == 1 || layer.kind == model::Layer::Kind::kIm2col)) {
          continue;
        }
        // Where tensor cores do not take it, TF32 is float32.
        if (operands.allow_tf32 && !model::has_tf32(layer, layout)) continue;
        const std::string dtype_name = operands.name;
        const std::string layout_name = layout == Layout::kChannelsLast ? "channels_last" : "NCHW";
        const std::string name = layer.name + ", " + dtype_name + ", " + layout_name;
        if (name.find(options.only) == std::string::npos) continue;
        const auto with = [&](auto make) {
          if (verifies) {
            same = verify(make(), make(), operands.most, launches, name) && same;
            return;
          }
          auto step = make();
          launches.begin("\"layer\": \"" + layer.name + "\", \"dtype\": \"" + dtype_name +
                         "\", \"layout\": \"" + layout_name + "\", " + step.facts());
          step.run(launches);
        };
        using Kind = model::Layer::Kind;
        switch (layer.kind) {
          case Kind::kLayer: with([&] { return model::LayerRun(layer, operands, layout); }); break;
          case Kind::kParts: with([&] { return model::PartsRun(layer, operands, layout); }); break;
          case Kind::kIm2col: with([&] { return model::Im2colRun(layer, operands.dtype); }); break;
        }
      }
    }
  }
  if (options.task == Launches::Task::kNames) {
    for (const std::string& name : launches.names()) std::cout << name << "\n";
  }
  return same ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string flag = argv[i];
    const bool more = i + 1 < argc;
    if (flag == "--kernels") {
      options.task = Launches::Task::kNames;
    } else if (flag == "--verify") {
      options.task = Launches::Task::kResults;
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
