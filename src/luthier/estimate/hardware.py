"""What trains: memory, speed and price of the hardware that a prediction is made for.

Vendors' figures are dense (no sparsity). `matmul_share`: what training reaches of the peak rate,
from published training speeds (each with its source), because no kernel runs at the peak.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from luthier.errors import ConfigError
from luthier.estimate.shape import DType

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device. `price_usd_per_hour` is None where nobody is paid by the hour."""

    name: str
    memory_bytes: int
    """What a process can use: what the driver reports, not what the box says."""
    context_bytes: int
    """CUDA context, cuBLAS workspaces and kernels; on a CPU what the libraries allocate as the
    first step runs. Outside torch's allocator."""
    slack_fraction: float
    """What the allocator holds beyond what is in use, a share of the activations."""
    bandwidth_bytes_per_second: float
    flops_per_second: Mapping[DType, float]
    matmul_share: float
    is_cuda: bool
    price_usd_per_hour: float | None
    source: str
    price_source: str | None = None
    """Whose price, and of when: an example, not an offer."""

    def rate(self, dtype: DType) -> float:
        """Achievable floating point operations a second in matrix products."""
        return self.flops_per_second[dtype] * self.matmul_share


def _tensor_cores(sixteen_bits: float, float32: float) -> Mapping[DType, float]:
    return {"bfloat16": sixteen_bits, "float16": sixteen_bits, "float32": float32}


_RUNPOD = (
    "RunPod on demand, the cheaper of its clouds, March 2026 "
    "(deploybase.ai/articles/runpod-gpu-pricing, rtx-4090-cloud)"
)
# Context: 0.5 GiB is what nvidia-smi shows for a process with an empty torch tensor (CUDA 12 and
# 13: 0.4 to 0.6 GiB) and cuBLAS' workspace (32 MiB on Hopper, 8 MiB before).
GPUS: Mapping[str, Hardware] = {
    "rtx-4090": Hardware(
        name="rtx-4090",
        memory_bytes=int(23.5 * GIB),
        context_bytes=int(0.5 * GIB),
        slack_fraction=0.05,
        bandwidth_bytes_per_second=1008e9,
        # NVIDIA Ada whitepaper v2.1, appendix A: 165.2 with float32 accumulation; TF32 is off.
        flops_per_second=_tensor_cores(165.2e12, 82.6e12),
        matmul_share=0.55,
        is_cuda=True,
        price_usd_per_hour=0.60,
        source="NVIDIA Ada GPU architecture whitepaper 2.1",
        price_source=_RUNPOD,
    ),
    "a100-40gb": Hardware(
        name="a100-40gb",
        memory_bytes=int(39.4 * GIB),
        context_bytes=int(0.5 * GIB),
        slack_fraction=0.05,
        bandwidth_bytes_per_second=1555e9,
        flops_per_second=_tensor_cores(312e12, 19.5e12),
        matmul_share=0.45,
        is_cuda=True,
        price_usd_per_hour=1.29,
        source="NVIDIA A100 data sheet, June 2021",
        price_source="Lambda on demand, 2025",
    ),
    "a100-80gb": Hardware(
        name="a100-80gb",
        memory_bytes=int(79.1 * GIB),
        context_bytes=int(0.5 * GIB),
        slack_fraction=0.05,
        bandwidth_bytes_per_second=2039e9,
        flops_per_second=_tensor_cores(312e12, 19.5e12),
        matmul_share=0.45,
        is_cuda=True,
        price_usd_per_hour=2.45,
        source="NVIDIA A100 data sheet, June 2021 (SXM)",
        price_source=_RUNPOD,
    ),
    "h100-80gb": Hardware(
        name="h100-80gb",
        memory_bytes=int(79.1 * GIB),
        context_bytes=int(0.6 * GIB),
        slack_fraction=0.05,
        bandwidth_bytes_per_second=3350e9,
        flops_per_second=_tensor_cores(989e12, 67e12),
        matmul_share=0.35,
        is_cuda=True,
        price_usd_per_hour=4.76,
        source="NVIDIA H100 data sheet, 2023 (SXM)",
        price_source=_RUNPOD,
    ),
}

# A core does two fused multiply-adds of eight float32 each in a cycle with AVX2 (Intel and AMD
# since 2013), at about 2.5 GHz under load.
_CPU_FLOPS_PER_CORE = 2 * 2 * 8 * 2.5e9
_CPU_BANDWIDTH = 20e9


def cpu(memory_bytes: int, cores: int, *, maps_tensors: bool) -> Hardware:
    """This machine's processor: `memory_bytes` that are free, without CPU_LIBRARIES_BYTES where
    the libraries are still to be loaded; `cores` that may be used.

    `maps_tensors`: the process gives freed tensors back (glibc's M_MMAP_THRESHOLD is fixed at
    1 MiB); without, its heap grows to about twice what is in use.
    """
    flops = cores * _CPU_FLOPS_PER_CORE
    return Hardware(
        name="cpu",
        memory_bytes=memory_bytes,
        context_bytes=CPU_CONTEXT_BYTES,
        slack_fraction=MAPPED_SLACK if maps_tensors else GLIBC_SLACK,
        bandwidth_bytes_per_second=_CPU_BANDWIDTH,
        # Without AVX512-BF16 or AMX 16 bits are emulated: measured 90 times slower than float32.
        flops_per_second={"float32": flops, "bfloat16": flops / 90, "float16": flops / 90},
        matmul_share=0.6,
        is_cuda=False,
        price_usd_per_hour=None,
        source="psutil, and AVX2's two multiply-adds of eight numbers a cycle at 2.5 GHz",
    )


def find_hardware(name: str, detected: Hardware) -> Hardware:
    """The hardware of that name; `auto` is what the caller detected on this machine.

    Raises:
        ConfigError: there is none of that name.
    """
    match name:
        case "auto":
            return detected
        case "cpu" if not detected.is_cuda:
            return detected
        case _ if name in GPUS:
            return GPUS[name]
    raise ConfigError(f"hardware: {name} is not known. Known: auto, cpu, {', '.join(GPUS)}.")


def by_device_name(device: str, memory_bytes: int) -> Hardware | None:
    """The hardware of a CUDA device by torch's name for it ("NVIDIA H100 80GB HBM3") and its
    memory in bytes; None when it is none of the known ones."""
    for hardware in GPUS.values():
        model = hardware.name.partition("-")[0 if hardware.name[0] != "r" else 2]
        is_near = abs(memory_bytes - hardware.memory_bytes) < 0.1 * hardware.memory_bytes
        if model in device.lower() and is_near:
            return hardware
    return None


# Measured on Linux with glibc 2.36 by benchmarks/cpu_memory.py: what a process grows by beyond all
# that is counted;
CPU_CONTEXT_BYTES = 40 * 2**20
# what the allocator holds beyond what is in use, a share of activations and temporaries: with
# tensors mapped, and by glibc's heap (0.1 to 2.5, which is why tensors should be mapped);
MAPPED_SLACK = 0.03
GLIBC_SLACK = 1.0
# and what is resident before a model is loaded, with torch 2.13, transformers 5.23, peft 0.21,
# trl 1.16, accelerate 1.15 and bitsandbytes 0.50 imported.
CPU_LIBRARIES_BYTES = 540 * 2**20
