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
        rows: int,
        elements: int,
        sigma_min: float,
        weight: int,
        position: int,
        sigma: int,
    ) -> None: ...

def build_info() -> dict[str, str | bool | list[str]]: ...
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
