"""XLA flags for tests: programs that compile several times faster, which is worth more here than running fast once."""

import importlib.metadata

FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # LLVM's; XLA's own stay
FLAGS += " --xla_cpu_parallel_codegen_split_count=1"  # each core has a worker
if importlib.metadata.version("jaxlib") < "0.11":  # unknown to later ones, which end the process over an unknown flag
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
