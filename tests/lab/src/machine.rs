//! The description of an L1, and QEMU's command line for it.

mod devices;
pub mod models;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::{Arch, Debian, Kernel};
use models::Model;

/// The first slot for devices on bus 0. Slot 0 is q35's host bridge, 1d is the agent's port, and 1f
/// is the chipset's.
const FIRST_SLOT: usize = 2;

/// A device of L1, for assignment to L2. A device behind its own port can be reset with its bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// An NVMe with its own disk image. Its reset is an FLR.
    Nvme,
    /// An NVMe like [`Device::Nvme`] with [`WIDE_VECTORS`] vectors of MSI-X, more than a CPU of L1
    /// has.
    WideNvme,
    /// An NVMe behind a port, with a disk image that its virtual functions share.
    NvmeWithVfs,
    /// An NVMe like [`Device::Nvme`], behind a port from which it can be unplugged.
    PluggedNvme,
    /// An NVMe like [`Device::Nvme`], with a whole Debian.
    Debian(Debian),
    /// A PCIe NIC. Its reset is by power management.
    E1000e,
    /// A PCIe NIC behind a port, with SR-IOV, MSI and MSI-X. Its reset is an FLR. QEMU has it since
    /// 8.0, so its machine runs in the newest QEMU of Debian.
    Igb,
    /// A virtio-rng behind a port that reports AER errors. Its reset is an FLR.
    VirtioRng,
    /// A conventional PCI NIC with INTx and an I/O BAR. It has no reset.
    Rtl8139,
    /// A conventional PCI NIC with an I/O BAR only. It has no reset.
    Ne2k,
    /// A SATA controller with MSI behind a port, with a disk that has an image.
    Ahci,
    /// A USB controller with MSI and without MSI-X behind a port, with a tablet.
    Xhci,
    /// A USB controller with MSI-X behind a port, with a disk that has an image.
    UsbDisk,
    /// A device with two functions, each a USB controller with a tablet. Function 0 has the pin
    /// INTA#, function 1 INTB#. It has no reset.
    TwoUhcis,
    /// QEMU's teaching device, with programmable DMA, INTx and MSI. It has no reset.
    Edu,
    /// QEMU's pci-testdev, with a memory and an I/O BAR. It has no reset.
    Testdev,
    /// An ivshmem: memory in a large prefetchable 64-bit BAR. It has no reset.
    Ivshmem,
    /// A bridge to conventional PCI with two e1000 and an rtl8139. They are one IOMMU group, and
    /// the NICs are reset together.
    SharedGroup,
    /// One of QEMU's models, on the root bus.
    Model(&'static Model),
}

/// The number of virtual functions of a [`Device::NvmeWithVfs`].
pub const VFS: u16 = 16;
/// The number of vectors of a [`Device::WideNvme`].
pub const WIDE_VECTORS: u16 = 400;
/// The size of an ivshmem's memory in bytes.
pub const IVSHMEM_SIZE: u64 = 256 << 20;

impl Device {
    /// Whether the device has a disk image.
    #[must_use]
    pub fn is_disk(self) -> bool {
        match self {
            Self::Model(model) => model.is_disk(),
            _ => self.is_own_disk(),
        }
    }

    fn is_own_disk(self) -> bool {
        matches!(
            self,
            Self::Nvme
                | Self::WideNvme
                | Self::PluggedNvme
                | Self::NvmeWithVfs
                | Self::Ahci
                | Self::UsbDisk
                | Self::Debian(_)
        )
    }

    /// Whether its test needs the small kernel as guest: see [`Guest::small`](crate::Guest::small).
    pub(crate) fn needs_small(self) -> bool {
        match self {
            Self::Model(model) => model.needs_small(),
            _ => self == Self::Edu,
        }
    }

    /// Whether the device is on its own bus, not on the root bus.
    fn has_bus(self) -> bool {
        matches!(
            self,
            Self::PluggedNvme
                | Self::Igb
                | Self::VirtioRng
                | Self::NvmeWithVfs
                | Self::Ahci
                | Self::Xhci
                | Self::UsbDisk
                | Self::SharedGroup
        )
    }

    /// The modules that L2 needs for the device.
    #[must_use]
    pub fn modules(self) -> &'static [&'static str] {
        match self {
            Self::Nvme | Self::WideNvme | Self::PluggedNvme | Self::NvmeWithVfs => &["nvme"],
            // Its own initrd has its modules.
            Self::Debian(_) => &[],
            Self::E1000e => &["e1000e"],
            Self::Rtl8139 => &["8139cp"],
            Self::Ne2k => &["ne2k-pci"],
            Self::Ahci => &["ahci", "sd_mod"],
            Self::Xhci => &["xhci-pci"],
            Self::UsbDisk => &["xhci-pci", "usb-storage", "sd_mod"],
            // The guest's init uses these without a driver.
            Self::Edu | Self::Testdev | Self::Ivshmem | Self::Igb => &[],
            Self::TwoUhcis => &["uhci-hcd"],
            Self::VirtioRng => &["virtio-rng"],
            Self::SharedGroup => &["e1000", "8139cp"],
            Self::Model(model) => model.modules,
        }
    }
}

/// The IOMMU of a PC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Iommu {
    /// Intel VT-d.
    Intel {
        /// The width of IOVAs in bits: 48, or 39 as on many client machines.
        address_bits: u8,
    },
    /// AMD-Vi.
    Amd,
}

impl Iommu {
    /// The argument of QEMU's `-device`.
    pub(crate) fn device(self) -> String {
        match self {
            Self::Intel { address_bits } => {
                format!("intel-iommu,intremap=on,aw-bits={address_bits}")
            }
            Self::Amd => "amd-iommu,intremap=on".to_owned(),
        }
    }
}

/// The description of an L1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// The kernel of L1.
    pub kernel: Kernel,
    /// The kernel of L2.
    pub guest_kernel: Kernel,
    /// The IOMMU of a PC. An arm64 machine has an SMMUv3.
    pub iommu: Iommu,
    /// The RAM in MiB.
    pub memory_mib: u32,
    /// The devices, in the order of their slots from 0000:00:02.0 on.
    pub devices: Vec<Device>,
    /// Whether L1 can mount the host's root; on arm64, a root with programs of that architecture.
    pub host_share: bool,
    /// Whether L1's CPU has ERMS, so that its kernel clears and copies memory by byte-wise string
    /// instructions. Each byte counts as an instruction here, while hardware moves 32 bytes or more
    /// in a cycle. So ERMS makes memory ten times slower than on hardware. Without it, the kernel
    /// uses instructions of 8 bytes.
    pub byte_strings: bool,
    /// Whether guests use the devices by type1 even if L1 has iommufd.
    pub type1: bool,
}

impl Machine {
    /// A machine with one NVMe, an Intel IOMMU of 48 bits, and 2 GiB of RAM.
    #[must_use]
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            guest_kernel: kernel,
            iommu: Iommu::Intel { address_bits: 48 },
            memory_mib: 2048,
            devices: vec![Device::Nvme],
            host_share: false,
            byte_strings: false,
            type1: false,
        }
    }

    /// Sets the kernel of L2, which is that of L1 otherwise.
    #[must_use]
    pub fn guest_kernel(self, guest_kernel: Kernel) -> Self {
        Self { guest_kernel, ..self }
    }

    /// Sets the IOMMU.
    #[must_use]
    pub fn iommu(self, iommu: Iommu) -> Self {
        Self { iommu, ..self }
    }

    /// Sets the RAM in MiB.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Self {
        Self { memory_mib, ..self }
    }

    /// Sets the devices.
    #[must_use]
    pub fn devices(self, devices: &[Device]) -> Self {
        Self { devices: devices.to_vec(), ..self }
    }

    /// Lets L1 mount the host's root.
    #[must_use]
    pub fn with_host_share(self) -> Self {
        Self { host_share: true, ..self }
    }

    /// Gives the CPU ERMS: see [`byte_strings`](Self::byte_strings).
    #[must_use]
    pub fn with_byte_strings(self) -> Self {
        Self { byte_strings: true, ..self }
    }

    /// Lets guests use the devices by type1. The small kernels have iommufd, and the VMM prefers it.
    #[must_use]
    pub fn by_type1(self) -> Self {
        Self { type1: true, ..self }
    }

    /// The architecture of L1 and L2: that of the kernel.
    #[must_use]
    pub fn arch(&self) -> Arch {
        self.kernel.arch()
    }

    /// Whether guests use the devices by iommufd.
    #[must_use]
    pub fn has_iommufd(&self) -> bool {
        self.kernel.is_small() && !self.type1
    }

    /// Whether the host's QEMU lacks what the machine needs: a device, or the emulation of XSAVE
    /// for guests of L1 (QEMU 7.2 does not intercept their XSETBV, and then Linux 7.3 panics).
    pub(crate) fn needs_newest_qemu(&self) -> bool {
        let is_new = |device: &Device| matches!(device, Device::Igb | Device::Model(_));
        self.guest_kernel == Kernel::Stock73 || self.devices.iter().any(is_new)
    }

    /// The address of device number `index` in L1. For a shared group it is the bridge's address.
    #[must_use]
    pub fn address(&self, index: usize) -> String {
        match self.devices.get(index) {
            Some(device) if device.has_bus() && *device != Device::SharedGroup => {
                format!("0000:{:02x}:00.0", self.bus(index))
            }
            _ => format!("0000:00:{:02x}.0", FIRST_SLOT.saturating_add(index)),
        }
    }

    /// The Debian of the first disk that has one.
    pub(crate) fn debian(&self) -> Option<Debian> {
        self.devices.iter().find_map(|device| match device {
            Device::Debian(debian) => Some(*debian),
            _ => None,
        })
    }

    /// The address of the first device of a kind. The machine must have one.
    #[must_use]
    pub fn address_of(&self, device: Device) -> String {
        let index = self.devices.iter().position(|own| *own == device);
        self.address(index.unwrap_or(usize::MAX))
    }

    /// QEMU's ID of device number `index`. Only devices that tests unplug or inject errors into
    /// have one.
    #[must_use]
    pub fn id(&self, index: usize) -> String {
        format!("device{index}")
    }

    /// The arguments of QMP's `device_add` that plug the NVMe with number `index` in again.
    #[must_use]
    pub fn nvme(&self, index: usize) -> Value {
        // QEMU 10 takes no text for a boolean.
        let typed = |text: String| if text == "on" { Value::Bool(true) } else { text.into() };
        devices::nvme(index)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), typed(value)))
            .collect()
    }

    /// The addresses of the three NICs of the shared group; the rtl8139 is the last.
    #[must_use]
    pub fn nics(&self) -> [String; 3] {
        let index = self.devices.iter().position(|own| *own == Device::SharedGroup);
        let bus = self.bus(index.unwrap_or(usize::MAX));
        [1, 2, 3].map(|slot| format!("0000:{bus:02x}:{slot:02x}.0"))
    }

    /// The address of virtual function `number`, from 1 on, of the first [`Device::NvmeWithVfs`].
    /// They follow the physical function (first VF offset 1, VF stride 1).
    #[must_use]
    pub fn vf(&self, number: u16) -> String {
        let index = self.devices.iter().position(|own| *own == Device::NvmeWithVfs);
        let bus = self.bus(index.unwrap_or(usize::MAX));
        format!("0000:{bus:02x}:{:02x}.{}", number >> 3, number & 7)
    }

    /// The bus of device number `index`: firmware numbers buses in the order of the slots.
    fn bus(&self, index: usize) -> usize {
        let before = self.devices.iter().take(index);
        before.filter(|device| device.has_bus()).count().saturating_add(1)
    }

    /// QEMU's arguments.
    pub(crate) fn arguments(&self, files: &MachineFiles) -> Vec<String> {
        let mut arguments = self.base(files);
        for (index, device) in self.devices.iter().enumerate() {
            let image = files.images.get(index).cloned().unwrap_or_default();
            arguments.extend(devices::arguments(index, *device, &image));
        }
        if let Some(root) = &files.share {
            let share = format!(
                "local,path={},mount_tag=host,security_model=none,readonly=on,multidevs=remap",
                root.display()
            );
            arguments.extend(["-virtfs".into(), share]);
        }
        arguments
    }

    /// QEMU's arguments without devices. L1's clock counts the instructions that L1 has run
    /// (`-icount`), so measurements do not depend on the load of the host.
    fn base(&self, files: &MachineFiles) -> Vec<String> {
        let platform = self.arch().platform();
        let text = format!(
            "{hardware} -accel tcg,thread=single -icount shift=0,sleep=on -smp 1 -m {memory} \
             -nodefaults -nographic -no-reboot -serial stdio -name l1 \
             -device virtio-serial-pci,addr=1d -device virtserialport,chardev=lab,name={port}",
            hardware = (platform.hardware)(self),
            memory = self.memory_mib,
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
        arguments.extend(["-append".into(), platform.command_line.into()]);
        arguments
    }
}

/// The files of a machine.
#[derive(Clone, Debug, Default)]
pub(crate) struct MachineFiles {
    /// The folder in which a QEMU is unpacked; `None` for the host's.
    pub qemu: Option<PathBuf>,
    /// The folder that L1 mounts as the host's root, if any.
    pub share: Option<PathBuf>,
    /// L1's kernel.
    pub kernel: PathBuf,
    /// L1's initramfs.
    pub initrd: PathBuf,
    /// The socket of the agent's port.
    pub socket: PathBuf,
    /// The socket of QEMU's monitor.
    pub monitor: PathBuf,
    /// The path of a disk image for each device; only devices with a disk have the file.
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
    fn counts_time_in_instructions() {
        let line = line(&Machine::new(Kernel::Small));
        assert!(
            line.contains("-accel tcg,thread=single -icount shift=0,sleep=on -smp 1"),
            "{line}"
        );
    }

    #[test]
    fn has_the_requested_iommu() {
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
    fn has_erms_only_on_request() {
        assert!(line(&Machine::new(Kernel::Small)).contains("-cpu max,-erms,-fsrm -device"));
        assert!(
            line(&Machine::new(Kernel::Small).with_byte_strings()).contains("-cpu max -device")
        );
    }

    #[test]
    fn puts_each_device_at_its_address() {
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
    fn writes_nothing_to_the_image_of_a_debian() {
        let disks = [Device::Debian(Debian::Bookworm), Device::Nvme];
        let line = line(&Machine::new(Kernel::Small).devices(&disks));
        assert!(line.contains("file=/0.img,snapshot=on -device nvme,"), "{line}");
        assert!(line.contains("file=/1.img -device nvme,"), "{line}");
    }

    #[test]
    fn numbers_buses_as_firmware_does() {
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
    fn shares_a_root_read_only() {
        let machine = Machine::new(Kernel::Small);
        assert!(!line(&machine).contains("virtfs"));
        let files = MachineFiles { share: Some("/root".into()), ..MachineFiles::default() };
        let line = machine.arguments(&files).join(" ");
        assert!(line.contains("local,path=/root,") && line.contains("readonly=on"), "{line}");
    }

    #[test]
    fn arm64_machine_has_an_smmu_and_no_iommu_of_a_pc() {
        let line = line(&Machine::new(Kernel::Arm612));
        assert!(line.contains("virt,virtualization=on,gic-version=3,iommu=smmuv3"), "{line}");
        assert!(line.contains("console=ttyAMA0") && !line.contains("intel-iommu"), "{line}");
    }
}
