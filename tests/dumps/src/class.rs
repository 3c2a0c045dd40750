//! Names of classes (PCI Code and ID Assignment, 1).

/// Classes of the dumps, by base class and subclass.
const NAMES: &[(u16, &str)] = &[
    (0x0100, "SCSI"),
    (0x0101, "IDE"),
    (0x0106, "SATA"),
    (0x0107, "SAS"),
    (0x0108, "NVMe"),
    (0x0180, "storage"),
    (0x0200, "Ethernet"),
    (0x0280, "network"),
    (0x0300, "VGA"),
    (0x0302, "3D"),
    (0x0380, "display"),
    (0x0403, "audio"),
    (0x0502, "CXL memory"),
    (0x0600, "host bridge"),
    (0x0601, "ISA bridge"),
    (0x0604, "PCI bridge"),
    (0x0607, "CardBus bridge"),
    (0x0800, "interrupt controller"),
    (0x0805, "SD host"),
    (0x0807, "event collector"),
    (0x0880, "system"),
    (0x0b40, "coprocessor"),
    (0x0c00, "FireWire"),
    (0x0c03, "USB"),
    (0x0c05, "SMBus"),
    (0x1300, "instrumentation"),
];

/// The name of a class, or its number.
pub fn name(class: u16) -> String {
    let found = NAMES.iter().find(|(own, _)| *own == class);
    found.map_or_else(|| format!("{class:#06x}"), |(_, name)| (*name).to_owned())
}
