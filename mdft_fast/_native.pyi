from typing import TypedDict

class BuildInfo(TypedDict):
    torch_version: str
    torch_target_version: str
    compiler: str
    nvcc_version: str | None
    cuda_architectures: list[str]
    flags: str
    commit: str | None
    build_type: str

class CpuFeatures(TypedDict):
    avx2: bool
    fma: bool
    f16c: bool
    avx512f: bool
    avx512_bf16: bool

def build_info() -> BuildInfo: ...
def cpu_features() -> CpuFeatures: ...
