"""Peak figures of TPUs and GPUs from the makers' data sheets. Each row is one device."""

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Hardware:
    """Peak figures of one device.

    Attributes:
      platform: "tpu" or "cuda", as in jax.
      memory: size of the main memory, in bytes.
      flops: rate of dense bfloat16 products, in FLOP per second.
      float32_flops: rate for float32; XLA's default is bfloat16 on a TPU and TF32 on these GPUs.
      bandwidth: bandwidth of the main memory, in bytes per second.
      fast_memory: size of a TPU core's vector memory (VMEM) or of a GPU's L2 cache, in bytes.
      link: total one-way bandwidth to other devices, in bytes per second.
      single_host_devices: the largest number of devices that one host has.
      host_devices: number of devices of each host in a larger slice.
      source: the source of these figures.
      clock: clock rate in Hz.
      xla_description: a GPU's description for XLA's compiler.
    """

    platform: str
    memory: float
    flops: float
    float32_flops: float
    bandwidth: float
    fast_memory: int
    link: float
    single_host_devices: int
    host_devices: int
    source: str
    clock: float
    xla_description: str = ""

    def peak_flops(self, precision: str) -> float:
        """Return the rate of products for the option train.precision."""
        return self.float32_flops if precision == "float32" else self.flops


def _tpu(
    memory: int, tflops: float, gigabytes: int, vmem: int, link_gigabits: int, single_host: int,
    flops_per_cycle: int, source: str,
) -> Hardware:  # fmt: skip
    flops, link = tflops * 1e12, link_gigabits * 1e9 / 8 / 2  # the sheets add both directions
    return Hardware(
        "tpu", memory * 2**30, flops, flops, gigabytes * 1e9, vmem * 2**20, link, single_host, 4,
        source, flops / flops_per_cycle,
    )  # fmt: skip


def _gpu(
    memory: int, tflops: float, tf32: float, gigabytes: int, link_gigabytes: int, source: str,
    **spec: float,
) -> Hardware:  # fmt: skip
    capability = f"major: {spec.pop('major'):g} minor: {spec.pop('minor', 0):g}"
    fields = " ".join(f"{name}: {value:.10g}" for name, value in spec.items())
    description = (
        f"gpu_device_info {{ {fields} threads_per_block_limit: 1024 threads_per_warp: 32 "
        "shared_memory_per_block: 49152 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 "
        "block_dim_limit_z: 65535 registers_per_core_limit: 65536 registers_per_block_limit: 65536 "
        f"memory_bandwidth: {gigabytes * 10**9} device_memory_size: {memory * 2**30} "
        f"cuda_compute_capability {{ {capability} }} }} "
        'platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 }'
    )
    bandwidth, link = gigabytes * 1e9, link_gigabytes * 1e9 / 2
    return Hardware(
        "cuda", memory * 2**30, tflops * 1e12, tf32 * 1e12, bandwidth, int(spec["l2_cache_size"]),
        link, 8, 8, source, spec["clock_rate_ghz"] * 1e9, description,
    )  # fmt: skip


HARDWARE = {
    # The compiler counts a v3 or v4 chip as two devices: these rows are half a chip. VMEM: jax's
    # pallas/mosaic/tpu_info.py. FLOPs per cycle: a matrix unit has 128² multipliers (v6e: 256²),
    # and a device has two units (v3), four, or eight (v5p). The compiler estimates 0.7 to 0.97 of
    # these FLOPs per cycle for a large product.
    "v3": replace(
        _tpu(16, 61.5, 450, 16, 1120, 8, 2 * 2 * 128**2, "cloud.google.com/tpu/docs/v3"),
        host_devices=8,
    ),
    "v4": replace(
        _tpu(16, 137.5, 614, 16, 1200, 8, 4 * 2 * 128**2, "cloud.google.com/tpu/docs/v4"),
        host_devices=8,
    ),
    "v5e": _tpu(16, 197, 819, 128, 1600, 8, 4 * 2 * 128**2, "cloud.google.com/tpu/docs/v5e"),
    "v5p": _tpu(95, 459, 2765, 128, 4800, 4, 8 * 2 * 128**2, "cloud.google.com/tpu/docs/v5p"),
    "v6e": _tpu(32, 918, 1640, 128, 3584, 8, 4 * 2 * 256**2, "cloud.google.com/tpu/docs/v6e"),
    "a100": _gpu(
        80, 312, 156, 2039, 600, "NVIDIA A100 80GB SXM data sheet",
        major=8, core_count=108, fpus_per_core=64, threads_per_core_limit=2048,
        shared_memory_per_core=167936, shared_memory_per_block_optin=166912,
        l2_cache_size=41943040, clock_rate_ghz=1.41,
    ),
    "h100": _gpu(
        80, 989, 494, 3350, 900, "NVIDIA H100 SXM data sheet",
        major=9, core_count=132, fpus_per_core=128, threads_per_core_limit=2048,
        shared_memory_per_core=233472, shared_memory_per_block_optin=232448,
        l2_cache_size=52428800, clock_rate_ghz=1.98,
    ),
    "l4": _gpu(
        24, 121, 60, 300, 64, "NVIDIA L4 data sheet",
        major=8, minor=9, core_count=58, fpus_per_core=128, threads_per_core_limit=1536,
        shared_memory_per_core=102400, shared_memory_per_block_optin=101376,
        l2_cache_size=50331648, clock_rate_ghz=2.04,
    ),
}  # fmt: skip
