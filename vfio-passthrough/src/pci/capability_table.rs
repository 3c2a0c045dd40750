//! What the guest sees of each capability: one row for each ID that PCI-SIG has assigned, up to
//! PCIe 7.0 (PCI Code and ID Assignment, 2 and 3). `docs/devices.md` has the same rows with the
//! reasons, and a test compares them.
//!
//! A capability is shown if the guest can use it: its registers reach the device through VFIO, or
//! they are emulated. One that needs the host's link, bridges, IOMMU, firmware or keys is hidden,
//! and so is an ID without a row.

/// What the guest sees of a capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The capability, with registers that the library emulates.
    Emulated,
    /// The capability, with the device's registers as the host's kernel presents them.
    Forwarded,
    /// Nothing: it is not in the list, and its registers read as zero.
    Hidden,
}

/// The choice for one capability ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Row {
    /// The capability ID.
    pub id: u16,
    /// The name.
    pub name: &'static str,
    /// What the guest sees.
    pub kind: Kind,
}

const fn emulated(id: u16, name: &'static str) -> Row {
    Row { id, name, kind: Kind::Emulated }
}

const fn forwarded(id: u16, name: &'static str) -> Row {
    Row { id, name, kind: Kind::Forwarded }
}

const fn hidden(id: u16, name: &'static str) -> Row {
    Row { id, name, kind: Kind::Hidden }
}

/// The capabilities of the list that starts at 0x34.
pub const STANDARD: [Row; 22] = [
    hidden(0x00, "Null"),
    forwarded(0x01, "Power Management"),
    hidden(0x02, "AGP"),
    forwarded(0x03, "VPD"),
    hidden(0x04, "Slot Identification"),
    emulated(0x05, "MSI"),
    hidden(0x06, "CompactPCI Hot Swap"),
    forwarded(0x07, "PCI-X"),
    hidden(0x08, "HyperTransport"),
    forwarded(0x09, "Vendor-Specific"),
    forwarded(0x0a, "Debug Port"),
    hidden(0x0b, "CompactPCI Resource Control"),
    hidden(0x0c, "PCI Hot-Plug"),
    hidden(0x0d, "Bridge Subsystem Vendor ID"),
    hidden(0x0e, "AGP 8x"),
    hidden(0x0f, "Secure Device"),
    forwarded(0x10, "PCI Express"),
    emulated(0x11, "MSI-X"),
    forwarded(0x12, "SATA"),
    forwarded(0x13, "Advanced Features"),
    hidden(0x14, "Enhanced Allocation"),
    hidden(0x15, "Flattening Portal Bridge"),
];

/// The extended capabilities, of the list that starts at 0x100.
pub const EXTENDED: [Row; 59] = [
    hidden(0x0000, "Null"),
    forwarded(0x0001, "Advanced Error Reporting"),
    hidden(0x0002, "Virtual Channel"),
    forwarded(0x0003, "Device Serial Number"),
    forwarded(0x0004, "Power Budgeting"),
    hidden(0x0005, "Root Complex Link Declaration"),
    hidden(0x0006, "Root Complex Internal Link Control"),
    hidden(0x0007, "Root Complex Event Collector Endpoint Association"),
    hidden(0x0008, "Multi-Function Virtual Channel"),
    hidden(0x0009, "Virtual Channel, with MFVC"),
    hidden(0x000a, "Root Complex Register Block"),
    forwarded(0x000b, "Vendor-Specific (VSEC)"),
    hidden(0x000c, "Configuration Access Correlation"),
    hidden(0x000d, "Access Control Services"),
    hidden(0x000e, "ARI"),
    hidden(0x000f, "ATS"),
    hidden(0x0010, "SR-IOV"),
    hidden(0x0011, "MR-IOV"),
    hidden(0x0012, "Multicast"),
    hidden(0x0013, "Page Requests"),
    hidden(0x0014, "Reserved for AMD"),
    hidden(0x0015, "Resizable BAR"),
    hidden(0x0016, "Dynamic Power Allocation"),
    hidden(0x0017, "TPH Requester"),
    hidden(0x0018, "Latency Tolerance Reporting"),
    hidden(0x0019, "Secondary PCI Express"),
    hidden(0x001a, "Protocol Multiplexing"),
    hidden(0x001b, "PASID"),
    hidden(0x001c, "LN Requester"),
    hidden(0x001d, "Downstream Port Containment"),
    hidden(0x001e, "L1 PM Substates"),
    hidden(0x001f, "Precision Time Measurement"),
    hidden(0x0020, "PCI Express over M-PHY"),
    hidden(0x0021, "FRS Queueing"),
    forwarded(0x0022, "Readiness Time Reporting"),
    forwarded(0x0023, "Designated Vendor-Specific (DVSEC)"),
    hidden(0x0024, "VF Resizable BAR"),
    hidden(0x0025, "Data Link Feature"),
    hidden(0x0026, "Physical Layer 16.0 GT/s"),
    hidden(0x0027, "Lane Margining at the Receiver"),
    hidden(0x0028, "Hierarchy ID"),
    hidden(0x0029, "Native PCIe Enclosure Management"),
    hidden(0x002a, "Physical Layer 32.0 GT/s"),
    hidden(0x002b, "Alternate Protocol"),
    hidden(0x002c, "System Firmware Intermediary"),
    hidden(0x002d, "Shadow Functions"),
    hidden(0x002e, "Data Object Exchange"),
    hidden(0x002f, "Device 3"),
    hidden(0x0030, "Integrity and Data Encryption"),
    hidden(0x0031, "Physical Layer 64.0 GT/s"),
    hidden(0x0032, "Flit Logging"),
    hidden(0x0033, "Flit Performance Measurement"),
    hidden(0x0034, "Flit Error Injection"),
    hidden(0x0035, "Streamlined Virtual Channel"),
    forwarded(0x0036, "MMIO Register Block Locator"),
    hidden(0x0037, "NOP Flit"),
    hidden(0x0038, "Scalable I/O Virtualization"),
    hidden(0x0039, "Physical Layer 128.0 GT/s"),
    hidden(0x003a, "Captured Data"),
];

/// What the guest sees of a capability of the list that starts at 0x34.
pub fn standard(id: u8) -> Kind {
    kind_in(&STANDARD, id.into())
}

/// What the guest sees of an extended capability.
pub fn extended(id: u16) -> Kind {
    kind_in(&EXTENDED, id)
}

fn kind_in(rows: &[Row], id: u16) -> Kind {
    rows.iter().find(|row| row.id == id).map_or(Kind::Hidden, |row| row.kind)
}
