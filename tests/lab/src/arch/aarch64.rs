//! QEMU's `virt`.

use super::Platform;
use crate::Machine;
use crate::packages::need;

pub const PLATFORM: Platform = Platform {
    machine: "an arm64 machine with an SMMUv3",
    qemu: "qemu-system-aarch64",
    needs: &[
        need("/usr/bin/qemu-system-aarch64", "qemu-system-arm"),
        need("/usr/bin/aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
        need("/usr/aarch64-linux-gnu/lib/libc.a", "libc6-dev-arm64-cross"),
    ],
    hardware,
    command_line: "console=ttyAMA0 panic=-1 loglevel=4",
    // KVM, the SMMU and virtio are built into Debian's kernel.
    l1_modules: &[
        "virtio_pci",
        "virtio_console",
        "vfio-pci",
        "vfio_iommu_type1",
        "nvme",
        "e1000",
        "9pnet_virtio",
        "9p",
    ],
    l2_modules: &[
        "nvme",
        "e1000",
        "e1000e",
        "8139cp",
        "ne2k-pci",
        "ahci",
        "sd_mod",
        "xhci-pci",
        "usb-storage",
        "gpio_keys",
        "evdev",
    ],
    button: &["gpio_keys", "evdev"],
    target: "aarch64-unknown-linux-gnu",
    // The others have a guest of x86, or its interrupt controllers.
    examples: &["lspci"],
    linker: Some(("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")),
};

/// Without `pauth-impdef=on`, QEMU computes pointer authentication as the architecture's algorithm
/// says, and L1 takes twice as long.
fn hardware(_: &Machine) -> String {
    "-machine virt,virtualization=on,gic-version=3,iommu=smmuv3 -cpu max,pauth-impdef=on".to_owned()
}
