//! QEMU's q35.

use super::Platform;
use crate::Machine;
use crate::packages::need;

pub const PLATFORM: Platform = Platform {
    machine: "a PC with an IOMMU",
    qemu: "qemu-system-x86_64",
    needs: &[
        need("/usr/bin/qemu-system-x86_64", "qemu-system-x86"),
        // The static libc: L1 and L2 have no shared libraries.
        need("/usr/lib/x86_64-linux-gnu/libc.a", "libc6-dev"),
    ],
    hardware,
    command_line: "console=ttyS0 intel_iommu=on iommu=pt panic=-1 loglevel=4",
    l1_modules: &[
        "virtio_pci",
        "virtio_console",
        "kvm-amd",
        "vfio-pci",
        "vfio_iommu_type1",
        "nvme",
        "e1000",
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
        "uhci-hcd",
        "usb-storage",
        "button",
        "evdev",
    ],
    button: &["button", "evdev"],
    target: "x86_64-unknown-linux-gnu",
    examples: &["attach", "lspci", "minimal_vmm", "own_router"],
    linker: None,
};

fn hardware(machine: &Machine) -> String {
    let cpu = if machine.byte_strings { "max" } else { "max,-erms,-fsrm" };
    format!("-machine q35 -cpu {cpu} -device {}", machine.iommu.device())
}
