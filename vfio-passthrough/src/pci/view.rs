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
//! [`capability_table`](super::capability_table) has the same choice for capabilities.

mod capabilities;
mod messages;

use std::io;

use super::bar::{Bar, BarKind};
use super::config::{Byte, ConfigSpace};
use super::regs::*;
use crate::address::BarIndex;
use crate::address::PciAddress;

/// The bits of the command register that the guest can set. PCI Express functions hardwire the
/// others to zero, for example special cycles and VGA palette snoop (PCIe 7.5.1.1.3).
const COMMAND_WRITABLE: u16 = Command::all().bits();

/// The vendor ID of a slot without a function (PCI 3.0, 6.2.1).
const NO_VENDOR: u32 = 0xffff;
/// Other values of vendor and device ID by which a guest's kernel finds no function: those of
/// broken bridges, and the answer of a function that is not ready (PCIe 2.3.2).
const ABSENT: [u32; 3] = [0, 0xffff_0000, 0xffff_0001];

/// The sizes in bytes of the regions of the six BARs and of the ROM. A size of 0 means that the
/// function does not have it.
pub type RegionSizes = [u64; BarIndex::COUNT as usize + 1];

/// What VFIO provides of a function, apart from its config space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HostSupport {
    /// The sizes of the regions.
    pub regions: RegionSizes,
    /// The number of MSI vectors; 0 for none.
    pub msi: u32,
    /// The number of MSI-X vectors; 0 for none.
    pub msix: u32,
}

/// Reads the device's config space: fills `data` from an offset on.
pub(super) type ReadConfig<'a> = &'a mut dyn FnMut(u16, &mut [u8]) -> io::Result<()>;

/// The reason why a function with these first bytes of config space cannot be assigned at all.
pub fn refusal(header: &[u8]) -> Option<&'static str> {
    let identity = header.first_chunk().map_or(u32::MAX, |bytes| u32::from_le_bytes(*bytes));
    if identity & NO_VENDOR == NO_VENDOR || ABSENT.contains(&identity) {
        return Some("config space has no vendor ID: the device does not answer");
    }
    let layout = byte_at(header, HEADER_TYPE) & !MULTIFUNCTION;
    (layout != 0).then_some("its header type is not 0: it is a bridge, or it does not answer")
}

struct View<'a> {
    address: PciAddress,
    bytes: Vec<Byte>,
    host: &'a HostSupport,
    bars: Vec<Bar>,
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
        host: &HostSupport,
        mut read: impl FnMut(u16, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let size = if size < EXTENDED_SIZE { CONVENTIONAL_SIZE } else { EXTENDED_SIZE };
        let bytes = vec![Byte::default(); usize::from(size)];
        let mut view = View { address, bytes, host, bars: Vec::new(), read: &mut read };
        view.header()?;
        let offsets = view.capabilities()?;
        if size == EXTENDED_SIZE {
            view.extended_capabilities()?;
        }
        let msi = offsets.msi.map(|offset| view.msi(offset)).transpose()?.flatten();
        let msix = offsets.msix.map(|offset| view.msix(offset)).transpose()?.flatten();
        let conventional = view.bytes.iter().take(CONVENTIONAL_SIZE.into());
        Ok(Self {
            power_on: conventional.map(|byte| byte.value).collect(),
            bytes: view.bytes,
            offsets,
            bars: view.bars,
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
        self.power_on.get(usize::from(INTERRUPT_PIN)).copied().unwrap_or(0)
    }

    /// Hides the interrupt pin, if the VMM has no line for it.
    pub fn without_pin(mut self) -> Self {
        self.clear(INTERRUPT_PIN, 0xff);
        self
    }

    /// Shows the function as one of several of its device (PCI 3.0, 6.2.1).
    pub fn set_multifunction(&mut self) {
        self.values_at(HEADER_TYPE).for_each(|value| *value |= MULTIFUNCTION);
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
        self.values_at(offset).for_each(|value| *value &= !bits);
        let byte = self.bytes.get_mut(usize::from(offset));
        byte.into_iter().for_each(|byte| byte.emulated |= bits);
    }

    /// The values of a byte: now, and after power-on.
    fn values_at(&mut self, offset: u16) -> impl Iterator<Item = &mut u8> {
        let at = usize::from(offset);
        let now = self.bytes.get_mut(at).map(|byte| &mut byte.value);
        now.into_iter().chain(self.power_on.get_mut(at))
    }
}

impl View<'_> {
    fn header(&mut self) -> io::Result<()> {
        let header: [u8; HEADER_END as usize] = self.read_array(0)?;
        self.emulate(0, &header);
        // Status is forwarded, except for Capabilities List: the capability list is emulated.
        self.forward(STATUS, &(!STATUS_CAPABILITIES).to_le_bytes());
        self.emulate(COMMAND, &[0, 0]);
        self.writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.writable(CACHE_LINE_SIZE, &[0xff, 0xff]);
        self.writable(INTERRUPT_LINE, &[0xff]);
        let pin = byte_at(&header, INTERRUPT_PIN);
        // A function that is alone in its device has INTA# or none (PCI 2.2.6).
        self.emulate(INTERRUPT_PIN, &[if pin > LAST_PIN { INTA } else { pin }]);
        self.emulate(HEADER_TYPE, &[byte_at(&header, HEADER_TYPE) & !MULTIFUNCTION, 0]);
        self.emulate(BAR0, &[0; 28]);
        self.emulate(ROM, &[0; 4]);
        self.bars(&header);
        Ok(())
    }

    fn bars(&mut self, header: &[u8]) {
        for (index, size) in BarIndex::all().zip(self.host.regions).filter(|(_, size)| *size != 0) {
            let offset = BAR0.saturating_add(u16::from(index.number()).saturating_mul(4));
            let register = header.get(usize::from(offset)..).and_then(|bytes| bytes.first_chunk());
            let register = register.map_or(0, |bytes| u32::from_le_bytes(*bytes));
            self.bar(index, Bar::new(index, register, size), size);
        }
        if let Some(size) = self.host.regions.last().copied().filter(|size| *size != 0) {
            self.bar(BarIndex::ROM, Bar::rom(size), size);
        }
    }

    /// Emulates a BAR, or logs why it is hidden.
    fn bar(&mut self, index: BarIndex, bar: Option<Bar>, size: u64) {
        let is_upper =
            |last: &Bar| last.kind == BarKind::Memory64 && last.index.next() == Some(index);
        let upper = self.bars.last().is_some_and(is_upper);
        match bar.filter(|_| !upper) {
            Some(bar) => {
                let bytes = |bits: u64| {
                    bits.to_le_bytes().into_iter().take(bar.register_size()).collect::<Vec<_>>()
                };
                self.emulate(bar.register(), &bytes(bar.fixed_bits()));
                self.writable(bar.register(), &bytes(bar.writable_bits()));
                self.bars.push(bar);
            }
            None => {
                let reason =
                    if upper { "it is the upper half of a BAR" } else { "it is too large" };
                let address = self.address;
                log::warn!(
                    "{address}: {index} is hidden: its region has {size:#x} bytes, but {reason}"
                );
            }
        }
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

fn byte_at(bytes: &[u8], offset: u16) -> u8 {
    bytes.get(usize::from(offset)).copied().unwrap_or(0)
}
