__version__: str

class CudaError(RuntimeError): ...

class Execution:
    def __init__(self, device: int, device_index: int, stream: int, num_threads: int) -> None: ...

class ConstructProblem:
    def __init__(
        self,
        version: int,
        dtype: int,
        size: list[int],
        position_row: list[int],
        rows: int,
        elements: int,
        sigma_min: float,
        weight: int,
        position: int,
        sigma: int,
    ) -> None: ...

class ConvProblem:
    def __init__(
        self,
        dtype: int,
        layout: int,
        batch: int,
        in_channels: int,
        out_channels: int,
        groups: int,
        input_size: list[int],
        output_size: list[int],
        kernel_size: list[int],
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        allow_tf32: bool = False,
    ) -> None: ...

class VersionInfo:
    @property
    def name(self) -> str: ...
    @property
    def normalised(self) -> bool: ...
    @property
    def has_width(self) -> bool: ...
    @property
    def smallest_width(self) -> float: ...
    @property
    def most_taps(self) -> int: ...

class DTypeInfo:
    @property
    def name(self) -> str: ...
    @property
    def bytes(self) -> int: ...

def dtypes() -> list[DTypeInfo]: ...
def versions() -> list[VersionInfo]: ...
def build_info() -> dict[str, str | bool | list[str]]: ...
def same_bytes(one: int, other: int, count: int) -> bool: ...
def cuda_status() -> dict[str, str | bool | list[str]]: ...
def construct(problem: ConstructProblem, kernel: int, where: Execution) -> None: ...
def construct_backward(
    problem: ConstructProblem,
    grad_kernel: int,
    grad_weight: int,
    grad_position: int,
    grad_sigma: int,
    where: Execution,
) -> None: ...
def construct_support(problem: ConstructProblem, support: int, where: Execution) -> None: ...
def takes_batch_as_lanes(
    dtype: int,
    batch: int,
    in_channels: int,
    out_channels: int,
    groups: int,
    output_size: int,
    stride: int,
    vector_bytes: int = 0,
) -> bool: ...
def direct_conv_workspace(problem: ConvProblem, conv_pass: int, where: Execution) -> int: ...
def direct_conv(
    problem: ConvProblem,
    input: int,
    kernel: int,
    bias: int,
    output: int,
    workspace: int,
    where: Execution,
) -> None: ...

class PreparedConv:
    def __init__(self, problem: ConvProblem, kernel: int, where: Execution) -> None: ...
    def forward(self, input: int, bias: int, output: int, where: Execution) -> None: ...

def direct_conv_backward_input(
    problem: ConvProblem,
    grad_output: int,
    kernel: int,
    grad_input: int,
    workspace: int,
    where: Execution,
) -> None: ...
def direct_conv_backward_kernel(
    problem: ConvProblem,
    grad_output: int,
    input: int,
    support: int,
    grad_kernel: int,
    workspace: int,
    where: Execution,
) -> None: ...

class LayerProblem:
    def __init__(
        self,
        construct: ConstructProblem,
        conv: ConvProblem,
        for_input: bool,
        for_parameters: bool,
    ) -> None: ...

def layer_saved(problem: LayerProblem, where: Execution) -> int: ...
def layer_workspace(problem: LayerProblem, layer_pass: int, where: Execution) -> int: ...
def layer_forward(
    problem: LayerProblem,
    input: int,
    bias: int,
    output: int,
    saved: int,
    workspace: int,
    where: Execution,
) -> None: ...
def layer_backward(
    problem: LayerProblem,
    grad_output: int,
    input: int,
    grad_input: int,
    grad_bias: int,
    grad_weight: int,
    grad_position: int,
    grad_sigma: int,
    saved: int,
    workspace: int,
    where: Execution,
) -> None: ...

class Im2colProblem:
    def __init__(
        self,
        *,
        version: int,
        dtype: int,
        size: list[int],
        stride: list[int],
        padding: list[int],
        input_size: list[int],
        output_size: list[int],
        batch: int,
        channels: int,
        elements: int,
        batch_stride: int,
        channel_stride: int,
        sigma_min: float,
        input: int,
        position: int,
        sigma: int,
    ) -> None: ...

def im2col_workspace(problem: Im2colProblem, where: Execution) -> int: ...
def im2col(problem: Im2colProblem, columns: int, workspace: int, where: Execution) -> None: ...
def im2col_backward(
    problem: Im2colProblem,
    grad_columns: int,
    grad_input: int,
    batch_stride: int,
    channel_stride: int,
    sums: int,
    parts: int,
    sigma: bool,
    workspace: int,
    where: Execution,
) -> None: ...
def im2col_finish(
    problem: Im2colProblem,
    sums: int,
    parts: int,
    grad_position: int,
    grad_sigma: int,
    workspace: int,
    where: Execution,
) -> None: ...

class DelayStep:
    def __init__(
        self,
        dtype: int,
        steps: int,
        rows: int,
        elements: int,
        inputs: int,
        delay: int,
        item: int,
        weight: int,
    ) -> None: ...
    def __call__(
        self,
        batch: int,
        input: int,
        input_stride: int,
        batch_stride: int,
        state: int,
        arriving: int,
        next_state: int,
        num_threads: int,
    ) -> None: ...
