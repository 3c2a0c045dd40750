//! Decides what the guest sees of each byte of config space. `docs/devices.md` has the same tables,
//! and a test compares them. *Hidden* bytes are emulated zeros.
//!
//! | register | kind | the guest sees | why |
//! |---|---|---|---|
//! | vendor, device, revision, class, subsystem, Min_Gnt, Max_Lat, reserved bytes | emulated | the device's values, read once | they never change, so no read has to reach the device |
//! | command | emulated | what it wrote | a new value changes memory slots first, and is then written to the device. SERR# stays on if the host has it on, so that errors are still reported to the host |
//! | status | forwarded | the device's bits | only the bit for the capability list is emulated, because the list is |
//! | cache line size, latency timer, interrupt line | emulated | what it wrote | it is not forwarded to the device |
//! | header type | emulated | the device's; the multifunction bit is the VMM's | the guest's device can have other functions than the host's (`PassthroughFunction::with_multifunction`) |
//! | BIST | hidden | zero | no guest driver needs it |
//! | CardBus pointer | hidden | zero | no guest driver needs it |
//! | BARs, ROM address | emulated | sizes from VFIO's regions, and the addresses that it wrote | the host's addresses stay in the device |
//! | interrupt pin | emulated | the device's, or none | a pin is shown only if VFIO has it and the VMM provides a line |
//! | capability pointer | emulated | the first capability that is shown | |
//!
//! | capability | id | kind | what we do, and why |
//! |---|---|---|---|
//! | Power Management | 0x01 | forwarded | a change of the power state removes BARs from guest memory first, and D0 places them again: a device in D3hot does not answer |
//! | MSI | 0x05 | emulated | the form is the device's; address, data and mask are the guest's, and do not reach the device. The host's kernel programs the device |
//! | PCI Express | 0x10 | forwarded, with emulated parts | an endpoint is shown as integrated in the root complex, because the guest has no port above it (PCIe 1.3.2.3); registers of links, slots and root ports are hidden. The FLR bit is emulated |
//! | MSI-X | 0x11 | emulated | as MSI. The pages of the table and of the pending bits are trapped |
//! | Advanced Features | 0x13 | forwarded | the FLR bit is emulated |
//! | Enhanced Allocation | 0x14 | hidden | its BARs have fixed addresses, which a guest cannot use |
//! | all others, such as vendor-specific and VPD | | forwarded | as the host's kernel virtualizes them |
//!
//! | extended capability | id | kind | why |
//! |---|---|---|---|
//! | ARI | 0x000e | hidden | describes how the host numbers functions |
//! | ATS | 0x000f | hidden | it is part of the set-up of the host's IOMMU |
//! | SR-IOV | 0x0010 | hidden | a guest must not create functions on the host |
//! | Page Requests | 0x0013 | hidden | as ATS |
//! | Resizable BAR | 0x0015 | hidden | a new size would not match VFIO's region |
//! | PASID | 0x001b | hidden | as ATS |
//! | VF Resizable BAR | 0x0024 | hidden | as Resizable BAR |
//! | all others, such as AER and serial number | | forwarded | as the host's kernel virtualizes them |

mod capabilities;

use std::io;

use super::bar::{Bar, BarKind};
use super::config::{Byte, ConfigSpace};
use super::regs::*;
use crate::address::BarIndex;
use crate::address::PciAddress;

/// The bits of the command register that the guest can set. PCI Express functions hardwire the
/// others to zero, for example special cycles and VGA palette snoop (PCIe 7.5.1.1.3).
const COMMAND_WRITABLE: u16 = Command::all().bits();

/// The sizes in bytes of the regions of the six BARs and of the ROM. A size of 0 means that the
/// function does not have it.
pub type RegionSizes = [u64; BarIndex::COUNT as usize + 1];

/// Reads the device's config space: fills `data` from an offset on.
pub(super) type ReadConfig<'a> = &'a mut dyn FnMut(u16, &mut [u8]) -> io::Result<()>;

struct View<'a> {
    address: PciAddress,
    bytes: Vec<Byte>,
    read: ReadConfig<'a>,
}

impl ConfigSpace {
    /// The guest's view of the device at `address`. `size` is that of its config space in bytes:
    /// below 4096 it counts as 256.
    ///
    /// # Errors
    ///
    /// The first error of `read`. This makes about 20 reads, of 1 to 64 bytes each. Accesses to
    /// emulated bits make none later.
    pub fn new(
        address: PciAddress,
        size: u16,
        regions: &RegionSizes,
        mut read: impl FnMut(u16, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let size = if size < EXTENDED_SIZE { CONVENTIONAL_SIZE } else { EXTENDED_SIZE };
        let mut view =
            View { address, bytes: vec![Byte::default(); usize::from(size)], read: &mut read };
        let bars = view.header(regions)?;
        let mut space = view.capabilities()?;
        if size == EXTENDED_SIZE {
            view.extended_capabilities()?;
        }
        let msix = match space.msix {
            Some(offset) => view.msix(offset)?,
            None => None,
        };
        if msix.is_none() {
            space.msix = None;
        }
        let msi = space.msi.map(|offset| view.msi(offset)).transpose()?;
        Ok(Self {
            power_on: view.bytes.clone(),
            bytes: view.bytes,
            offsets: space,
            bars,
            msi,
            msix,
            in_low_power: false,
            sizing: 0,
        })
    }
}

impl ConfigSpace {
    /// The interrupt pin of the function: 0 for none, 1 for INTA# (PCI 3.0, 6.2.4).
    pub fn pin(&self) -> u8 {
        self.power_on.get(usize::from(INTERRUPT_PIN)).map_or(0, |byte| byte.value)
    }

    /// Hides the interrupt pin, if the VMM has no line for it.
    pub fn without_pin(mut self) -> Self {
        self.clear(INTERRUPT_PIN, 0xff);
        self
    }

    /// Shows the function as one of several of its device (PCI 3.0, 6.2.1).
    pub fn set_multifunction(&mut self) {
        for bytes in [&mut self.bytes, &mut self.power_on] {
            let header_type = bytes.get_mut(usize::from(HEADER_TYPE));
            header_type.into_iter().for_each(|byte| byte.value |= MULTIFUNCTION);
        }
    }

    /// Hides the FLR capability, if the host cannot reset the function alone.
    pub fn without_flr(mut self) -> Self {
        for reset in std::mem::take(&mut self.offsets.resets).into_iter().flatten() {
            let (offset, bit) = reset.capable;
            self.clear(offset, bit);
        }
        self
    }

    /// Emulates read-only bits as zero.
    fn clear(&mut self, offset: u16, bits: u8) {
        for bytes in [&mut self.bytes, &mut self.power_on] {
            for byte in bytes.iter_mut().skip(usize::from(offset)).take(1) {
                byte.emulated |= bits;
                byte.value &= !bits;
            }
        }
    }
}

impl View<'_> {
    fn header(&mut self, regions: &RegionSizes) -> io::Result<Vec<Bar>> {
        let header: [u8; HEADER_END as usize] = self.read_array(0)?;
        self.emulate(0, &header);
        // Status is forwarded, except for Capabilities List: the capability list is emulated.
        self.forward(STATUS, &(!STATUS_CAPABILITIES).to_le_bytes());
        self.emulate(COMMAND, &[0, 0]);
        self.writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.writable(CACHE_LINE_SIZE, &[0xff, 0xff]);
        self.writable(INTERRUPT_LINE, &[0xff]);
        self.emulate(
            HEADER_TYPE,
            &[header.get(usize::from(HEADER_TYPE)).copied().unwrap_or(0) & !MULTIFUNCTION, 0],
        );
        self.emulate(BAR0, &[0; 28]);
        self.emulate(ROM, &[0; 4]);
        Ok(self.bars(&header, regions))
    }

    fn bars(&mut self, header: &[u8], regions: &RegionSizes) -> Vec<Bar> {
        let mut bars: Vec<Bar> = Vec::new();
        for (index, size) in BarIndex::all().zip(regions) {
            let offset = BAR0.saturating_add(u16::from(index.number()).saturating_mul(4));
            let register = header.get(usize::from(offset)..).and_then(|bytes| bytes.first_chunk());
            let register = register.map_or(0, |bytes| u32::from_le_bytes(*bytes));
            // The upper half of a 64-bit BAR is not a BAR.
            let is_upper =
                |last: &Bar| last.kind == BarKind::Memory64 && last.index.next() == Some(index);
            let upper = bars.last().is_some_and(is_upper);
            bars.extend(Bar::new(index, register, *size).filter(|_| !upper));
        }
        bars.extend(regions.last().and_then(|size| Bar::rom(*size)));
        for bar in &bars {
            let bytes = |bits: u64| {
                bits.to_le_bytes().into_iter().take(bar.register_size()).collect::<Vec<_>>()
            };
            self.emulate(bar.register(), &bytes(bar.fixed_bits()));
            self.writable(bar.register(), &bytes(bar.writable_bits()));
        }
        bars
    }

    fn read_array<const N: usize>(&mut self, offset: u16) -> io::Result<[u8; N]> {
        let mut data = [0; N];
        (self.read)(offset, &mut data)?;
        Ok(data)
    }

    /// Emulates bytes with these values.
    fn emulate(&mut self, offset: u16, values: &[u8]) {
        self.emulate_bits(offset, &vec![0xff; values.len()], values);
    }

    fn emulate_bits(&mut self, offset: u16, masks: &[u8], values: &[u8]) {
        for ((byte, mask), value) in
            self.bytes.iter_mut().skip(usize::from(offset)).zip(masks).zip(values)
        {
            byte.emulated |= mask;
            byte.value = (byte.value & !mask) | (value & mask);
        }
    }

    fn forward(&mut self, offset: u16, masks: &[u8]) {
        for (byte, mask) in self.bytes.iter_mut().skip(usize::from(offset)).zip(masks) {
            byte.emulated &= !mask;
        }
    }

    fn writable(&mut self, offset: u16, masks: &[u8]) {
        for (byte, mask) in self.bytes.iter_mut().skip(usize::from(offset)).zip(masks) {
            byte.writable |= mask;
        }
    }

    /// Emulates zeros that ignore writes.
    fn hide(&mut self, start: u16, end: u16) {
        let length = usize::from(end.saturating_sub(start));
        self.emulate(start, &vec![0; length]);
    }
}
