"""GPUs as their makers describe them, for programs that are compiled where there is none.

Numbers are those of NVIDIA's data sheets and of its tuning guides for each generation: products
are dense and, in bfloat16, summed in float32. What is really reached was measured on an H100
only, and is taken for the others.
"""

from typing import NamedTuple

MEMORY_REACHED = 0.9  # of the bandwidth: 3.0 of 3.35 TB/s
PRODUCTS_REACHED = 0.8  # 790 of 989 TFLOP/s


class Gpu(NamedTuple):
    """One kind of GPU."""

    kind: str  # as its driver calls it
    capability: tuple[int, int]
    cores: int  # streaming multiprocessors
    lanes: int  # float32 units of a core
    clock_ghz: float
    memory: int  # bytes
    bandwidth: float  # bytes/s
    cache: int  # bytes, L2
    shared: int  # bytes of a core's shared memory
    threads: int  # of a core
    tflops: dict[str, float]  # by type of products: bfloat16, tf32, and float32 in all its digits


GPUS = {
    "h100": Gpu(
        kind="NVIDIA H100 80GB HBM3",
        capability=(9, 0),
        cores=132,
        lanes=128,
        clock_ghz=1.98,
        memory=80_995 * 2**20,
        bandwidth=3.352e12,
        cache=50 * 2**20,
        shared=228 * 2**10,
        threads=2048,
        tflops={"bfloat16": 989.4, "tf32": 494.7, "float32": 66.9},
    ),
    "a100_40gb": Gpu(
        kind="NVIDIA A100-SXM4-40GB",
        capability=(8, 0),
        cores=108,
        lanes=64,
        clock_ghz=1.41,
        memory=40_536 * 2**20,
        bandwidth=1.555e12,
        cache=40 * 2**20,
        shared=164 * 2**10,
        threads=2048,
        tflops={"bfloat16": 312.0, "tf32": 156.0, "float32": 19.5},
    ),
    "rtx4090": Gpu(
        kind="NVIDIA GeForce RTX 4090",
        capability=(8, 9),
        cores=128,
        lanes=128,
        clock_ghz=2.52,
        memory=24_564 * 2**20,
        bandwidth=1.008e12,
        cache=72 * 2**20,
        shared=100 * 2**10,
        threads=1536,
        tflops={"bfloat16": 165.2, "tf32": 82.6, "float32": 82.6},
    ),
}


def described(gpu: Gpu) -> str:
    """What XLA wants to know of a GPU, in its own text format, with CUDA 12 and cuDNN 9."""
    major, minor = gpu.capability
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32
  shared_memory_per_block: 49152 shared_memory_per_block_optin: {gpu.shared - 1024}
  shared_memory_per_core: {gpu.shared} threads_per_core_limit: {gpu.threads}
  core_count: {gpu.cores} fpus_per_core: {gpu.lanes} clock_rate_ghz: {gpu.clock_ghz}
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: {gpu.bandwidth:.0f} l2_cache_size: {gpu.cache}
  device_memory_size: {gpu.memory}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 }}
runtime_version {{ major: 12 minor: 9 patch: 0 }}
device_description_str: "{gpu.kind}"
"""


def seconds_by_bytes(gpu: Gpu, num_bytes: float) -> float:
    """What moving so many bytes takes at least."""
    return num_bytes / (gpu.bandwidth * MEMORY_REACHED)


def seconds_by_products(gpu: Gpu, flops: dict[str, int]) -> float:
    """What so many FLOPs of each type take at least, one type after the other.

    Types that are not told are as fast as the fastest.
    """
    speeds = {dtype: gpu.tflops.get(dtype, max(gpu.tflops.values())) for dtype in flops}
    return sum(num / (speeds[dtype] * 1e12 * PRODUCTS_REACHED) for dtype, num in flops.items())
