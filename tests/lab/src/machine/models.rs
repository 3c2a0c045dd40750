//! QEMU's models of PCI devices for which Debian's kernel has a driver, by what they carry.

use std::path::Path;

use super::devices::nic;

/// A model: QEMU's name of it, and what it needs.
#[derive(Debug, PartialEq, Eq)]
pub struct Model {
    /// QEMU's name.
    pub name: &'static str,
    /// The properties of the device.
    properties: &'static str,
    /// What is connected to it.
    attached: Attached,
    /// The modules of its driver.
    pub modules: &'static [&'static str],
}

/// What is connected to a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attached {
    /// A network with QEMU's router.
    Network,
    /// A disk with an image: a device of this name on the model's bus with this suffix.
    Disk(&'static str, &'static str),
    /// A disk with an image, which the model is itself.
    Own,
    /// As many serial lines, to which nothing is connected, with their properties.
    Lines(&'static [&'static str]),
}

const SCSI: Attached = Attached::Disk("scsi-hd", ".0");
const USB: Attached = Attached::Disk("usb-storage", ".0");
const VIRTIO: &str = ",disable-legacy=on,iommu_platform=on";

const fn disk(name: &'static str, attached: Attached, modules: &'static [&'static str]) -> Model {
    Model { name, properties: "", attached, modules }
}

const fn network(name: &'static str, modules: &'static [&'static str]) -> Model {
    Model { name, properties: "", attached: Attached::Network, modules }
}

const fn virtio(name: &'static str, attached: Attached, modules: &'static [&'static str]) -> Model {
    Model { name, properties: VIRTIO, attached, modules }
}

const fn serial(name: &'static str, lines: &'static [&'static str]) -> Model {
    // The driver is built into Debian's kernel.
    Model { name, properties: "", attached: Attached::Lines(lines), modules: &[] }
}

/// Controllers with a disk.
pub const DISKS: &[Model] = &[
    disk("am53c974", SCSI, &["am53c974", "sd_mod"]),
    disk("dc390", SCSI, &["am53c974", "sd_mod"]),
    disk("lsi53c810", SCSI, &["sym53c8xx", "sd_mod"]),
    disk("lsi53c895a", SCSI, &["sym53c8xx", "sd_mod"]),
    disk("megasas", SCSI, &["megaraid_sas", "sd_mod"]),
    disk("megasas-gen2", SCSI, &["megaraid_sas", "sd_mod"]),
    disk("pvscsi", SCSI, &["vmw_pvscsi", "sd_mod"]),
    virtio("virtio-scsi-pci", SCSI, &["virtio_pci", "virtio_scsi", "sd_mod"]),
    virtio("virtio-blk-pci", Attached::Own, &["virtio_pci", "virtio_blk"]),
    disk("sdhci-pci", Attached::Disk("sd-card", ".0"), &["sdhci-pci", "mmc_block"]),
    disk("usb-ehci", USB, &["ehci-pci", "usb-storage", "sd_mod"]),
    disk("ich9-usb-ehci1", USB, &["ehci-pci", "usb-storage", "sd_mod"]),
    disk("pci-ohci", USB, &["ohci-pci", "usb-storage", "sd_mod"]),
    disk("piix3-usb-uhci", USB, &["uhci-hcd", "usb-storage", "sd_mod"]),
    disk("nec-usb-xhci", USB, &["xhci-pci", "usb-storage", "sd_mod"]),
];

/// Controllers that no test has, because they stop the machine: see docs/models.md.
const FAILING: &[Model] = &[disk("mptsas1068", SCSI, &["mptsas", "sd_mod"])];

/// Network controllers.
pub const NICS: &[Model] = &[
    network("e1000", &["e1000"]),
    network("e1000-82544gc", &["e1000"]),
    network("e1000-82545em", &["e1000"]),
    network("i82550", &["e100"]),
    network("i82557b", &["e100"]),
    network("i82559er", &["e100"]),
    network("i82801", &["e100"]),
    network("igb", &["igb"]),
    network("pcnet", &["pcnet32"]),
    network("tulip", &["tulip"]),
    network("vmxnet3", &["vmxnet3"]),
    virtio("virtio-net-pci", Attached::Network, &["virtio_pci", "virtio_net"]),
];

/// Serial ports.
pub const SERIAL: &[Model] = &[
    serial("pci-serial", &["chardev"]),
    serial("pci-serial-2x", &["chardev1", "chardev2"]),
    serial("pci-serial-4x", &["chardev1", "chardev2", "chardev3", "chardev4"]),
];

/// The modules of all models.
pub fn modules() -> Vec<&'static str> {
    let all = [DISKS, FAILING, NICS, SERIAL].into_iter().flatten();
    let mut modules: Vec<_> = all.flat_map(|model| model.modules).copied().collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

impl Model {
    /// Whether it has a disk with an image.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        matches!(self.attached, Attached::Disk(..) | Attached::Own)
    }

    /// The number of its serial lines.
    #[must_use]
    pub fn lines(&self) -> usize {
        match self.attached {
            Attached::Lines(lines) => lines.len(),
            _ => 0,
        }
    }

    /// QEMU's arguments.
    pub(super) fn arguments(&self, index: usize, slot: usize, image: &Path) -> Vec<String> {
        let place = format!("addr={slot:x}{}", self.properties);
        let device = format!("{},id=model{index},{place}", self.name);
        let drive = format!("if=none,id=disk{index},format=raw,file={}", image.display());
        match self.attached {
            Attached::Network => nic(self.name, &format!("net{index}"), &place),
            Attached::Own => {
                flags(&[("drive", drive), ("device", format!("{device},drive=disk{index}"))])
            }
            Attached::Disk(disk, bus) => {
                let bus =
                    if disk == "sd-card" { "sd-bus".into() } else { format!("model{index}{bus}") };
                let disk = format!("{disk},drive=disk{index},bus={bus}");
                flags(&[("drive", drive), ("device", device), ("device", disk)])
            }
            Attached::Lines(lines) => {
                let lines = (0..).zip(lines).map(|(line, property): (usize, _)| {
                    (
                        ("chardev", format!("null,id=line{index}-{line}")),
                        format!(",{property}=line{index}-{line}"),
                    )
                });
                let (lines, properties): (Vec<_>, Vec<_>) = lines.unzip();
                let device = [("device", device + &properties.concat())];
                flags(&[lines.as_slice(), &device].concat())
            }
        }
    }
}

fn flags(pairs: &[(&str, String)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| [format!("-{name}"), value.clone()]).collect()
}
