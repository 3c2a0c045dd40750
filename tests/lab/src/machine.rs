//! What an L1 is made of, and the QEMU command line that makes it.

mod devices;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::Kernel;

/// Slots of q35's bus 0 for devices: 0 is the host bridge, 1d ours, 1f the chipset's.
const FIRST_SLOT: usize = 2;

/// A device of L1, to be assigned to L2. Those behind a port of their own can be reset with their bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// With a disk image of its own. Resets by FLR.
    Nvme,
    /// Behind a port, with a disk image, and with virtual functions that share it.
    NvmeWithVfs,
    /// As [`Device::Nvme`], behind a port at which it can be unplugged. Resets by FLR.
    PluggedNvme,
    /// A PCIe NIC. Resets by power management.
    E1000e,
    /// Behind a port, which hears of its errors: a source of random numbers. Resets by FLR.
    VirtioRng,
    /// A conventional NIC: INTx, ports. Cannot be reset.
    Rtl8139,
    /// A conventional NIC that has ports and nothing else. Cannot be reset.
    Ne2k,
    /// Behind a port: a SATA controller with MSI, with a disk that has an image.
    Ahci,
    /// Behind a port: a USB controller that has MSI and no MSI-X, with a tablet at it.
    Xhci,
    /// Behind a port: a USB controller with MSI-X, with a disk that has an image.
    UsbDisk,
    /// A teaching device that does DMA as it is told, with INTx and MSI. Cannot be reset.
    Edu,
    /// Memory and ports to be accessed. Cannot be reset.
    Testdev,
    /// Memory in a large prefetchable BAR of 64 bits. Cannot be reset.
    Ivshmem,
    /// A bridge to conventional PCI with two e1000 and an rtl8139 behind it: all of it is one group, and the NICs
    /// are reset together.
    SharedGroup,
}

/// How many virtual functions a [`Device::NvmeWithVfs`] has.
pub const VFS: u16 = 16;
/// The size of an ivshmem's memory.
pub const IVSHMEM_SIZE: u64 = 256 << 20;

impl Device {
    /// Whether it has a disk image.
    #[must_use]
    pub fn is_disk(self) -> bool {
        matches!(
            self,
            Self::Nvme | Self::PluggedNvme | Self::NvmeWithVfs | Self::Ahci | Self::UsbDisk
        )
    }

    /// Whether a bus of its own is between it and the root bus.
    fn has_bus(self) -> bool {
        matches!(
            self,
            Self::PluggedNvme
                | Self::VirtioRng
                | Self::NvmeWithVfs
                | Self::Ahci
                | Self::Xhci
                | Self::UsbDisk
                | Self::SharedGroup
        )
    }

    /// The drivers of L2 for it.
    #[must_use]
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Nvme | Self::PluggedNvme | Self::NvmeWithVfs => &["nvme"],
            Self::E1000e => &["e1000e"],
            Self::Rtl8139 => &["8139cp"],
            Self::Ne2k => &["ne2k-pci"],
            Self::Ahci => &["ahci", "sd_mod"],
            Self::Xhci => &["xhci-pci"],
            Self::UsbDisk => &["xhci-pci", "usb-storage", "sd_mod"],
            // The guest's init drives them.
            Self::Edu | Self::Testdev | Self::Ivshmem => &[],
            Self::VirtioRng => &["virtio-rng"],
            Self::SharedGroup => &["e1000", "8139cp"],
        }
    }
}

/// What stands between L1's devices and its memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// VT-d. Many client machines have 39 address bits.
    Intel {
        /// How many bits an address has.
        address_bits: u8,
    },
    /// AMD-Vi.
    Amd,
}

impl Iommu {
    /// QEMU's word for it.
    fn device(self) -> String {
        match self {
            Self::Intel { address_bits } => {
                format!("intel-iommu,intremap=on,aw-bits={address_bits}")
            }
            Self::Amd => "amd-iommu,intremap=on".to_owned(),
        }
    }
}

/// An L1 to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// What it runs; L2 runs the same.
    pub kernel: Kernel,
    /// Its IOMMU.
    pub iommu: Iommu,
    /// Its RAM.
    pub memory_mib: u32,
    /// In order of their slots, from 0000:00:02.0 on.
    pub devices: Vec<Device>,
    /// Whether it can mount the host's root.
    pub host_share: bool,
    /// Whether its kernel clears and copies memory by byte-wise string instructions (ERMS), each byte of which
    /// counts as an instruction here. Hardware with ERMS takes 32 bytes or more in a cycle, so that this makes
    /// memory ten times slower than it is; without it the kernel takes instructions of 8 bytes.
    pub byte_strings: bool,
}

impl Machine {
    /// One NVMe behind an Intel IOMMU of 48 bits, 2 GiB of RAM.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            iommu: Iommu::Intel { address_bits: 48 },
            memory_mib: 2048,
            devices: vec![Device::Nvme],
            host_share: false,
            byte_strings: false,
        }
    }

    /// With another IOMMU.
    #[must_use]
    pub fn iommu(self, iommu: Iommu) -> Self {
        Self { iommu, ..self }
    }

    /// With so much RAM.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// With these devices.
    #[must_use]
    pub fn devices(self, devices: &[Device]) -> Self {
        Self { devices: devices.to_vec(), ..self }
    }

    /// With the host's root as a file system that can be mounted.
    #[must_use]
    pub fn with_host_share(self) -> Self {
        Self { host_share: true, ..self }
    }

    /// With a kernel that clears and copies memory byte by byte.
    #[must_use]
    pub fn with_byte_strings(self) -> Self {
        Self { byte_strings: true, ..self }
    }

    /// The address of device number `index` in L1. For a shared group: of its bridge.
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        match self.devices.get(index) {
            Some(device) if device.has_bus() && *device != Device::SharedGroup => {
                format!("0000:{:02x}:00.0", self.bus(index))
            }
            _ => format!("0000:00:{:02x}.0", FIRST_SLOT.saturating_add(index)),
        }
    }

    /// The address of the first device of a kind, which must be there.
    #[must_use]
    pub fn address_of(&self, device: Device) -> String {
        let index = self.devices.iter().position(|own| *own == device);
        self.address(index.unwrap_or(usize::MAX))
    }

    /// The name that QEMU has for device number `index`, where that is one that is unplugged or errs.
    #[must_use]
    pub fn id(&self, index: usize) -> String {
        format!("device{index}")
    }

    /// What QEMU makes device number `index` of, an NVMe, once more: for `device_add`.
    #[must_use]
    pub fn nvme(&self, index: usize) -> Value {
        let text = Value::String;
        devices::nvme(index)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), text(value)))
            .collect()
    }

    /// The three NICs of a shared group, the rtl8139 last.
    #[must_use]
    pub fn nics(&self) -> [String; 3] {
        let index = self.devices.iter().position(|own| *own == Device::SharedGroup);
        let bus = self.bus(index.unwrap_or(usize::MAX));
        [1, 2, 3].map(|slot| format!("0000:{bus:02x}:{slot:02x}.0"))
    }

    /// The virtual function `number` of the first NVMe that has them, on the same bus: they follow one another
    /// (first VF offset 1, VF stride 1).
    #[must_use]
    pub fn vf(&self, number: u16) -> String {
        let index = self.devices.iter().position(|own| *own == Device::NvmeWithVfs);
        let bus = self.bus(index.unwrap_or(usize::MAX));
        format!("0000:{bus:02x}:{:02x}.{}", number >> 3, number & 7)
    }

    /// Firmware numbers buses in the order of their bridges' slots.
    fn bus(&self, index: usize) -> usize {
        let before = self.devices.iter().take(index);
        before.filter(|device| device.has_bus()).count().saturating_add(1)
    }

    /// The arguments of QEMU.
    pub(crate) fn arguments(&self, files: &MachineFiles) -> Vec<String> {
        let mut arguments = self.base(files);
        for (index, device) in self.devices.iter().enumerate() {
            let image = files.images.get(index).cloned().unwrap_or_default();
            arguments.extend(devices::arguments(index, *device, &image));
        }
        if self.host_share {
            let share =
                "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap";
            arguments.extend(["-virtfs".into(), share.into()]);
        }
        arguments
    }

    /// Time in it is the number of instructions that it has run, so what it measures does not depend on how
    /// busy the host is.
    fn base(&self, files: &MachineFiles) -> Vec<String> {
        let text = format!(
            "-machine q35 -cpu {cpu} -accel tcg,thread=single -icount shift=0,sleep=on -smp 1 -m {memory} \
             -nodefaults -nographic -no-reboot -serial stdio -name l1 \
             -device {iommu} \
             -device virtio-serial-pci,addr=1d -device virtserialport,chardev=lab,name={port}",
            cpu = if self.byte_strings { "max" } else { "max,-erms,-fsrm" },
            memory = self.memory_mib,
            iommu = self.iommu.device(),
            port = crate::protocol::PORT_NAME,
        );
        let mut arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        let path = |path: &Path| path.display().to_string();
        arguments.extend([
            "-qmp".into(),
            format!("unix:{},server=on,wait=off", path(&files.monitor)),
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
    /// The socket of QEMU's monitor.
    pub monitor: PathBuf,
    /// A disk image per device; unused for those that are no disks.
    pub images: Vec<PathBuf>,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(machine: &Machine) -> String {
        let images = vec!["/0.img".into(), "/1.img".into(), PathBuf::new()];
        machine.arguments(&MachineFiles { images, ..MachineFiles::default() }).join(" ")
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
    fn the_iommu_is_the_one_that_was_asked_for() {
        let with = |iommu| line(&Machine::new(Kernel::Small).iommu(iommu));
        assert!(line(&Machine::new(Kernel::Small)).contains("intel-iommu,intremap=on,aw-bits=48"));
        assert!(with(Iommu::Intel { address_bits: 39 }).contains("aw-bits=39"));
        let amd = with(Iommu::Amd);
        assert!(
            amd.contains("-device amd-iommu,intremap=on ") && !amd.contains("intel-iommu"),
            "{amd}"
        );
    }

    #[test]
    fn memory_is_cleared_by_the_byte_only_when_asked() {
        assert!(line(&Machine::new(Kernel::Small)).contains("-cpu max,-erms,-fsrm -accel"));
        assert!(line(&Machine::new(Kernel::Small).with_byte_strings()).contains("-cpu max -accel"));
    }

    #[test]
    fn each_device_is_where_its_address_says() {
        let machine =
            Machine::new(Kernel::Small).devices(&[Device::Nvme, Device::Nvme, Device::SharedGroup]);
        let line = line(&machine);
        assert!(line.contains("file=/1.img -device nvme,serial=lab1,drive=disk1,addr=3"), "{line}");
        assert!(
            line.contains("pcie-pci-bridge,id=bridge2,addr=4")
                && line.contains("e1000,netdev=net2-1,bus=bridge2,addr=1"),
            "{line}"
        );
        assert_eq!(machine.address(1), "0000:00:03.0");
    }

    #[test]
    fn a_device_behind_a_port_is_on_the_bus_that_firmware_gives_it() {
        let machine = Machine::new(Kernel::Small).devices(&[
            Device::Nvme,
            Device::Ahci,
            Device::SharedGroup,
            Device::Edu,
            Device::NvmeWithVfs,
        ]);
        assert_eq!(machine.address_of(Device::Ahci), "0000:01:00.0");
        assert_eq!(machine.nics(), ["0000:02:01.0", "0000:02:02.0", "0000:02:03.0"]);
        assert_eq!(machine.address_of(Device::Edu), "0000:00:05.0");
        assert_eq!(machine.address_of(Device::NvmeWithVfs), "0000:03:00.0");
        assert_eq!(
            [1, 8, 16].map(|number| machine.vf(number)),
            ["0000:03:00.1", "0000:03:01.0", "0000:03:02.0"]
        );
    }

    #[test]
    fn the_host_is_shared_only_when_asked() {
        assert!(!line(&Machine::new(Kernel::Small)).contains("virtfs"));
        assert!(line(&Machine::new(Kernel::Small).with_host_share()).contains("readonly=on"));
    }
}
