"""Every annotation of flowjax is checked at run time in the tests; eight virtual devices stand in for an accelerator pod."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

from jaxtyping import install_import_hook

install_import_hook("flowjax", "typecheck.checker")
