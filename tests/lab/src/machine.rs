//! What an L1 is made of, and the QEMU command line that makes it.

use std::path::{Path, PathBuf};

use crate::Kernel;

/// Slots of q35's bus 0 for devices: 0 is the host bridge, 1d ours, 1f the chipset's.
const FIRST_SLOT: usize = 2;

/// A device of L1, to be assigned to L2.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// With a disk image of its own. In an IOMMU group of its own.
    Nvme,
    /// A PCIe NIC. In a group of its own.
    E1000e,
    /// A USB controller that has MSI and no MSI-X, with a tablet at it. In a group of its own.
    Xhci,
    /// A bridge to conventional PCI with two e1000 NICs behind it: all of it is one group.
    SharedGroup,
}

/// An L1 to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it runs; L2 runs the same.
    pub kernel: Kernel,
    /// How many bits an address has in the IOMMU. Many client machines have 39.
    pub iommu_address_bits: u8,
    /// Its RAM.
    pub memory_mib: u32,
    /// In order of their slots, from 0000:00:02.0 on.
    pub devices: Vec<Device>,
    /// Whether it can mount the host's root.
    pub host_share: bool,
}

impl Machine {
    /// One NVMe behind an IOMMU of 48 bits, 2 GiB of RAM.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            iommu_address_bits: 48,
            memory_mib: 2048,
            devices: vec![Device::Nvme],
            host_share: false,
        }
    }

    /// With an IOMMU of so many address bits.
    #[must_use]
    pub fn iommu_address_bits(self, bits: u8) -> Self {
        Self {
            iommu_address_bits: bits,
            ..self
        }
    }

    /// With these devices.
    #[must_use]
    pub fn devices(self, devices: &[Device]) -> Self {
        Self {
            devices: devices.to_vec(),
            ..self
        }
    }

    /// With the host's root as a file system that can be mounted.
    #[must_use]
    pub fn with_host_share(self) -> Self {
        Self {
            host_share: true,
            ..self
        }
    }

    /// The address of device number `index` in L1. For a shared group: of its bridge.
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        format!("0000:00:{:02x}.0", FIRST_SLOT.saturating_add(index))
    }

    /// The arguments of QEMU.
    pub(crate) fn arguments(&self, files: &MachineFiles) -> Vec<String> {
        let mut arguments = self.base(files);
        for (index, device) in self.devices.iter().enumerate() {
            arguments.extend(self.device(index, *device, files));
        }
        if self.host_share {
            let share = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
            arguments.extend(["-virtfs".into(), share.into()]);
        }
        arguments
    }

    /// Time in it is the number of instructions that it has run, so what it measures does not depend on how
    /// busy the host is.
    fn base(&self, files: &MachineFiles) -> Vec<String> {
        let text = format!(
            "-machine q35 -cpu max -accel tcg,thread=single -icount shift=0,sleep=on -smp 1 -m {memory} \
             -nodefaults -nographic -no-reboot -serial stdio -name l1 \
             -device intel-iommu,intremap=on,aw-bits={bits} \
             -device virtio-serial-pci,addr=1d -device virtserialport,chardev=lab,name={port}",
            memory = self.memory_mib,
            bits = self.iommu_address_bits,
            port = crate::protocol::PORT_NAME,
        );
        let mut arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let path = |path: &Path| path.display().to_string();
        arguments.extend([
            "-chardev".into(),
            format!("socket,id=lab,path={}", path(&files.socket)),
        ]);
        arguments.extend([
            "-kernel".into(),
            path(&files.kernel),
            "-initrd".into(),
            path(&files.initrd),
        ]);
        let command_line = "console=ttyS0 intel_iommu=on iommu=pt panic=-1 loglevel=4";
        arguments.extend(["-append".into(), command_line.into()]);
        arguments
    }

    fn device(&self, index: usize, device: Device, files: &MachineFiles) -> Vec<String> {
        let slot = FIRST_SLOT.saturating_add(index);
        match device {
            Device::Nvme => {
                let image = files.images.get(index).cloned().unwrap_or_default();
                let drive = format!("if=none,id=disk{index},format=raw,file={}", image.display());
                let nvme = format!("nvme,serial=lab{index},drive=disk{index},addr={slot:x}");
                vec!["-drive".into(), drive, "-device".into(), nvme]
            }
            Device::E1000e => nic("e1000e", &format!("net{index}"), &format!("addr={slot:x}")),
            Device::Xhci => {
                let controller = format!("nec-usb-xhci,id=usb{index},msi=on,msix=off,addr={slot:x}");
                let tablet = format!("usb-tablet,bus=usb{index}.0");
                ["-device", &controller, "-device", &tablet]
                    .map(str::to_owned)
                    .to_vec()
            }
            Device::SharedGroup => {
                let bridge = format!("pcie-pci-bridge,id=bridge{index},addr={slot:x}");
                let behind = |slot: u8| {
                    nic(
                        "e1000",
                        &format!("net{index}-{slot}"),
                        &format!("bus=bridge{index},addr={slot}"),
                    )
                };
                [vec!["-device".into(), bridge], behind(1), behind(2)].concat()
            }
        }
    }
}

/// A NIC with a network of its own, which leads nowhere.
fn nic(model: &str, network: &str, place: &str) -> Vec<String> {
    let network_of_its_own = format!("user,id={network},restrict=on");
    let device = format!("{model},netdev={network},{place}");
    vec!["-netdev".into(), network_of_its_own, "-device".into(), device]
}

/// The files that a machine runs on.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineFiles {
    /// Its kernel.
    pub kernel: PathBuf,
    /// Its initramfs.
    pub initrd: PathBuf,
    /// The socket behind the agent's port.
    pub socket: PathBuf,
    /// A disk image per device; unused for those that are no disks.
    pub images: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let images = vec!["/0.img".into(), "/1.img".into(), PathBuf::new()];
        machine
            .arguments(&MachineFiles {
                images,
                ..MachineFiles::default()
            })
            .join(" ")
    }

    #[test]
    fn time_is_counted_in_instructions() {
        let line = line(&Machine::new(Kernel::Small));
        assert!(
            line.contains("-accel tcg,thread=single -icount shift=0,sleep=on -smp 1"),
            "{line}"
        );
    }

    #[test]
    fn the_iommu_has_the_bits_that_were_asked_for() {
        assert!(line(&Machine::new(Kernel::Small)).contains("aw-bits=48"));
        assert!(line(&Machine::new(Kernel::Small).iommu_address_bits(39)).contains("aw-bits=39"));
    }

    #[test]
    fn each_device_is_where_its_address_says() {
        let machine = Machine::new(Kernel::Small).devices(&[Device::Nvme, Device::Nvme, Device::SharedGroup]);
        let line = line(&machine);
        assert!(
            line.contains("file=/1.img -device nvme,serial=lab1,drive=disk1,addr=3"),
            "{line}"
        );
        assert!(
            line.contains("pcie-pci-bridge,id=bridge2,addr=4")
                && line.contains("e1000,netdev=net2-1,bus=bridge2,addr=1"),
            "{line}"
        );
        assert_eq!(machine.address(1), "0000:00:03.0");
    }

    #[test]
    fn the_host_is_shared_only_when_asked() {
        assert!(!line(&Machine::new(Kernel::Small)).contains("virtfs"));
        assert!(line(&Machine::new(Kernel::Small).with_host_share()).contains("readonly=on"));
    }
}
