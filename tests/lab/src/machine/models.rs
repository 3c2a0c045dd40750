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
    /// What these arguments describe, before and after the model's own: see [`fill`].
    Parts(&'static [&'static str], &'static [&'static str]),
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

const fn sound(
    name: &'static str,
    properties: &'static str,
    after: &'static [&'static str],
    modules: &'static [&'static str],
) -> Model {
    Model { name, properties, attached: Attached::Parts(RECORDER, after), modules }
}

const fn screen(name: &'static str, modules: &'static [&'static str]) -> Model {
    Model { name, properties: "", attached: Attached::Parts(&[], &[]), modules }
}

const fn other(
    name: &'static str,
    properties: &'static str,
    before: &'static [&'static str],
    modules: &'static [&'static str],
) -> Model {
    Model { name, properties, attached: Attached::Parts(before, &[]), modules }
}

const fn serial(name: &'static str, lines: &'static [&'static str]) -> Model {
    // The driver is built into Debian's kernel.
    Model { name, properties: "", attached: Attached::Lines(lines), modules: &[] }
}

/// Controllers with a disk.
pub const DISKS: &[Model] = &[
    disk("am53c974", SCSI, &["am53c974", "sd_mod"]),
    disk("dc390", SCSI, &["am53c974", "sd_mod"]),
    disk("megasas", SCSI, &["megaraid_sas", "sd_mod"]),
    disk("megasas-gen2", SCSI, &["megaraid_sas", "sd_mod"]),
    // The driver finds no disk without a SAS address.
    disk(
        "mptsas1068",
        Attached::Disk("scsi-hd,wwn=0x5000c50000000001", ".0"),
        &["mptsas", "sd_mod"],
    ),
    disk("pvscsi", SCSI, &["vmw_pvscsi", "sd_mod"]),
    virtio("virtio-scsi-pci", SCSI, &["virtio_pci", "virtio_scsi", "sd_mod"]),
    virtio("virtio-blk-pci", Attached::Own, &["virtio_pci", "virtio_blk"]),
    disk("sdhci-pci", Attached::Disk("sd-card", ".0"), &["sdhci-pci", "mmc_block"]),
    Model { properties: ",serial=model", ..disk("nvme", Attached::Own, &["nvme"]) },
    disk("ich9-ahci", Attached::Disk("ide-hd", ".0"), &["ahci", "sd_mod"]),
    disk("ufs", Attached::Disk("ufs-lu", ""), &["ufshcd-pci", "sd_mod"]),
    disk("usb-ehci", USB, &["ehci-pci", "usb-storage", "sd_mod"]),
    disk("ich9-usb-ehci1", USB, &["ehci-pci", "usb-storage", "sd_mod"]),
    disk("pci-ohci", USB, &["ohci-pci", "usb-storage", "sd_mod"]),
    disk("piix3-usb-uhci", USB, &["uhci-hcd", "usb-storage", "sd_mod"]),
    disk("nec-usb-xhci", USB, &["xhci-pci", "usb-storage", "sd_mod"]),
    disk("qemu-xhci", USB, &["xhci-pci", "usb-storage", "sd_mod"]),
    disk("piix4-usb-uhci", USB, &["uhci-hcd", "usb-storage", "sd_mod"]),
    disk("ich9-usb-ehci2", USB, &["ehci-pci", "usb-storage", "sd_mod"]),
    disk("ich9-usb-uhci1", USB, &["uhci-hcd", "usb-storage", "sd_mod"]),
    disk("ich9-usb-uhci4", USB, &["uhci-hcd", "usb-storage", "sd_mod"]),
];

/// Controllers with a disk that do DMA to their own BARs. Only type1 and kernels that export BARs
/// can map them.
pub const OWN_BARS: &[Model] = &[
    disk("lsi53c895a", SCSI, &["sym53c8xx", "sd_mod"]),
    disk("lsi53c810", SCSI, &["sym53c8xx", "sd_mod"]),
];

/// Network controllers.
pub const NICS: &[Model] = &[
    network("e1000", &["e1000"]),
    network("e1000-82544gc", &["e1000"]),
    network("e1000-82545em", &["e1000"]),
    network("e1000e", &["e1000e"]),
    // Its virtual functions are 16 slots higher.
    network("igb", &["igb"]),
    network("pcnet", &["pcnet32"]),
    network("tulip", &["tulip"]),
    network("vmxnet3", &["vmxnet3"]),
    network("rtl8139", &["8139cp"]),
    network("ne2k_pci", &["ne2k-pci"]),
    virtio("virtio-net-pci", Attached::Network, &["virtio_pci", "virtio_net"]),
];

/// Network controllers of Intel's 8255x family. Its revisions differ in reset, and in what the
/// driver asks of them.
pub const I8255X: &[Model] = &[
    network("i82550", E100),
    network("i82551", E100),
    network("i82557a", E100),
    network("i82557b", E100),
    network("i82557c", E100),
    network("i82558a", E100),
    network("i82558b", E100),
    network("i82559a", E100),
    network("i82559b", E100),
    network("i82559c", E100),
    network("i82559er", E100),
    network("i82562", E100),
    network("i82801", E100),
];
const E100: &[&str] = &["e100"];

/// Serial ports.
pub const SERIAL: &[Model] = &[
    serial("pci-serial", &["chardev"]),
    serial("pci-serial-2x", &["chardev1", "chardev2"]),
    serial("pci-serial-4x", &["chardev1", "chardev2", "chardev3", "chardev4"]),
];

/// What the guest plays is recorded beside the model's image.
const RECORDER: &[&str] = &["-audiodev", "wav,id=sound{index},path={image}.out"];
const CODEC: &[&str] = &["-device", "hda-duplex,bus=model{index}.0,audiodev=sound{index}"];
const HDA: &[&str] = &["snd-hda-codec-generic", "snd-mixer-oss", "snd-pcm-oss", "snd-hda-intel"];

/// Sound.
pub const SOUND: &[Model] = &[
    sound("intel-hda", "", CODEC, HDA),
    sound("ich9-intel-hda", "", CODEC, HDA),
    sound("AC97", ",audiodev=sound{index}", &[], &["snd-intel8x0", "snd-mixer-oss", "snd-pcm-oss"]),
    sound(
        "ES1370",
        ",audiodev=sound{index}",
        &[],
        &["snd-ens1370", "snd-mixer-oss", "snd-pcm-oss"],
    ),
    sound(
        "virtio-sound-pci",
        ",audiodev=sound{index},disable-legacy=on,iommu_platform=on",
        &[],
        &["virtio_snd", "snd-mixer-oss", "snd-pcm-oss"],
    ),
];

/// Displays.
pub const SCREENS: &[Model] = &[
    screen("VGA", &["bochs"]),
    screen("secondary-vga", &["bochs"]),
    screen("bochs-display", &["bochs"]),
    screen("cirrus-vga", &["cirrus"]),
    screen("ati-vga", &["aty128fb"]),
    Model { properties: VIRTIO, ..screen("virtio-vga", &["virtio-gpu"]) },
    Model { properties: VIRTIO, ..screen("virtio-gpu-pci", &["virtio-gpu"]) },
];

const INPUT: &[&str] = &["virtio_input", "evdev"];
const BMC: &[&str] = &["-device", "ipmi-bmc-sim,id=bmc{index},mfg_id=0x123456"];
const PORT: Attached = Attached::Parts(
    &["-chardev", "file,id=port{index},path={image}.out,input-path={image}"],
    &["-device", "virtserialport,bus=model{index}.0,chardev=port{index},name=port"],
);

/// Models that are none of these.
pub const OTHERS: &[Model] = &[
    other(
        "virtio-rng-pci",
        ",rng=rng{index},disable-legacy=on,iommu_platform=on",
        &["-object", "rng-random,id=rng{index},filename={image}"],
        &["virtio-rng"],
    ),
    virtio("virtio-serial-pci", PORT, &["virtio_console"]),
    other(
        "virtio-9p-pci",
        ",fsdev=share{index},mount_tag=share,disable-legacy=on,iommu_platform=on",
        &["-fsdev", "local,id=share{index},path={folder},security_model=none,readonly=on"],
        &["9pnet_virtio", "9p"],
    ),
    other("virtio-keyboard-pci", VIRTIO, &[], INPUT),
    other("virtio-mouse-pci", VIRTIO, &[], INPUT),
    other("virtio-tablet-pci", VIRTIO, &[], INPUT),
    other(
        "virtio-crypto-pci",
        ",cryptodev=crypto{index},disable-legacy=on,iommu_platform=on",
        &["-object", "cryptodev-backend-builtin,id=crypto{index}"],
        &["virtio_crypto", "algif_skcipher"],
    ),
    other(
        "kvaser_pci",
        ",canbus=can{index}",
        &["-object", "can-bus,id=can{index}"],
        &["kvaser_pci", "can-raw"],
    ),
    other("i6300esb", "", &["-action", "watchdog=none"], &["i6300esb"]),
    other("pci-ipmi-kcs", ",bmc=bmc{index}", BMC, &["ipmi_si"]),
    other("pvpanic-pci", "", &["-action", "panic=none"], &["pvpanic-pci"]),
    other(EDU, ",dma_mask=0xffffffffffffffff", &[], &[]),
    other(
        "ivshmem-plain",
        ",memdev=shared{index}",
        &["-object", "memory-backend-ram,id=shared{index},share=on,size=64M"],
        &[],
    ),
    other("pci-testdev", "", &[], &[]),
];

/// A display and another model, which QEMU does not put beside those of [`SCREENS`] and [`OTHERS`].
pub const APART: &[Model] = &[
    screen("vmware-svga", &["vmwgfx"]),
    other("pci-ipmi-bt", ",bmc=bmc{index}", BMC, &["ipmi_si"]),
];

const EDU: &str = "edu";

/// The modules of all models.
pub fn modules() -> Vec<&'static str> {
    let all = [DISKS, OWN_BARS, NICS, I8255X, SERIAL, SOUND, SCREENS, OTHERS, APART];
    let all = all.into_iter().flatten();
    let mut modules: Vec<_> = all.flat_map(|model| model.modules).copied().collect();
    modules.sort_unstable();
    modules.dedup();
    modules
}

impl Model {
    /// Whether it has a disk with an image.
    #[must_use]
    pub fn is_disk(&self) -> bool {
        match self.attached {
            Attached::Parts(before, _) => before.concat().contains("{image}"),
            Attached::Disk(..) | Attached::Own => true,
            Attached::Network | Attached::Lines(_) => false,
        }
    }

    /// Whether its test needs the small kernel as guest: see [`Guest::small`](crate::Guest::small).
    #[must_use]
    pub fn needs_small(&self) -> bool {
        self.name == EDU
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
            Attached::Parts(before, after) => {
                let device = ["-device".to_owned(), device];
                let parts =
                    [before.iter(), after.iter()].map(|part| part.map(|it| (*it).to_owned()));
                let [before, after] = parts.map(Iterator::collect::<Vec<_>>);
                let all = before.into_iter().chain(device).chain(after);
                all.map(|text| fill(&text, index, image)).collect()
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

/// Puts the model's number, its image and the image's folder into an argument.
fn fill(text: &str, index: usize, image: &Path) -> String {
    let folder = image.parent().unwrap_or(image);
    text.replace("{index}", &index.to_string())
        .replace("{image}", &image.display().to_string())
        .replace("{folder}", &folder.display().to_string())
}

fn flags(pairs: &[(&str, String)]) -> Vec<String> {
    pairs.iter().flat_map(|(name, value)| [format!("-{name}"), value.clone()]).collect()
}
