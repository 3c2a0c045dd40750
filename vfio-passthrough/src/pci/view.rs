//! Decides, once, what the guest sees of each byte of config space.
//!
//! | bytes | what the guest sees |
//! |---|---|
//! | identity, class, subsystem (0x00-0x03, 0x08-0x0b, 0x2c-0x2f) | the device's, read once: they never change |
//! | command (0x04) | ours; new values are passed on to the device |
//! | status (0x06) | the device's, but for the capability-list bit |
//! | cache line size, latency timer, interrupt line | ours, and only remembered |
//! | header type | type 0, one function |
//! | BIST, CardBus pointer | not there |
//! | BARs (0x10-0x27), ROM (0x30) | ours; sizes from VFIO's regions |
//! | interrupt pin | the device's, where the host VMM has a line for it; else none |
//! | headers of capabilities | ours: lists without the hidden ones |
//! | MSI, MSI-X | ours |
//! | PCI Express | the device's, presented as a root complex integrated endpoint; FLR is ours |
//! | hidden capabilities (EA; SR-IOV, ARI, ATS, PRI, PASID, resizable BARs) | zeros that ignore writes |
//! | the rest | the device's, as the host's kernel virtualizes it |

use std::io;

use super::bar::{Bar, BarKind};
use super::caps::{self, Capability, ExtendedCapability};
use super::config::{Byte, ConfigSpace, Offsets};
use super::msi::{self, MsiLayout};
use super::msix::MsixLayout;
use super::regs::*;
use crate::address::BarIndex;

/// What the guest can set in the command register; special cycles, VGA and the like are wired to zero for PCI
/// Express (PCIe 7.5.1.1.3).
const COMMAND_WRITABLE: u16 = Command::all().bits();

/// Extended capabilities that only make sense with the host's topology, or that would change what others rely
/// on.
const HIDDEN_EXTENDED: [u16; 7] = [
    ext::ARI,
    ext::ATS,
    ext::SRIOV,
    ext::PRI,
    ext::REBAR,
    ext::PASID,
    ext::VF_REBAR,
];
/// BARs at fixed addresses cannot be in a guest.
const HIDDEN_STANDARD: [u8; 1] = [cap::EA];

/// The sizes of the regions of the six BARs and of the ROM.
pub type RegionSizes = [u64; BarIndex::COUNT as usize + 1];

/// Reads config space of the device, all of `data` from an offset on.
pub(super) type ReadConfig<'a> = &'a mut dyn FnMut(u16, &mut [u8]) -> io::Result<()>;

struct View<'a> {
    bytes: Vec<Byte>,
    read: ReadConfig<'a>,
}

impl ConfigSpace {
    /// The guest's view of a device whose config space has `size` bytes and whose BAR regions have `regions`
    /// bytes.
    ///
    /// # Errors
    ///
    /// Those of `read`: some 20 reads are done here, and none for what is emulated later.
    pub fn new(
        size: u16,
        regions: &RegionSizes,
        mut read: impl FnMut(u16, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        let size = if size < EXTENDED_SIZE {
            CONVENTIONAL_SIZE
        } else {
            EXTENDED_SIZE
        };
        let mut view = View {
            bytes: vec![Byte::default(); usize::from(size)],
            read: &mut read,
        };
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
            asleep: false,
        })
    }
}

impl ConfigSpace {
    /// The pin that the function says it signals, 0 for none, 1 for INTA# (PCI 6.2.4).
    pub fn pin(&self) -> u8 {
        self.power_on
            .get(usize::from(INTERRUPT_PIN))
            .map_or(0, |byte| byte.value)
    }

    /// Takes the pin away: for a host VMM that has no line for it.
    pub fn without_pin(mut self) -> Self {
        for bytes in [&mut self.bytes, &mut self.power_on] {
            bytes
                .iter_mut()
                .skip(usize::from(INTERRUPT_PIN))
                .take(1)
                .for_each(|byte| byte.value = 0);
        }
        self
    }
}

impl View<'_> {
    fn header(&mut self, regions: &RegionSizes) -> io::Result<Vec<Bar>> {
        let header: [u8; HEADER_END as usize] = self.read_array(0)?;
        self.emulate(0, &header);
        // Status is the device's, but for the bit that says that our list is there.
        self.forward(STATUS, &(!STATUS_CAPABILITIES).to_le_bytes());
        self.emulate(COMMAND, &[0, 0]);
        self.writable(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.writable(CACHE_LINE_SIZE, &[0xff, 0xff]);
        self.writable(INTERRUPT_LINE, &[0xff]);
        self.emulate(
            HEADER_TYPE,
            &[
                header.get(usize::from(HEADER_TYPE)).copied().unwrap_or(0) & !MULTIFUNCTION & 0x7f,
                0,
            ],
        );
        self.emulate(BAR0, &[0; 28]);
        self.emulate(ROM, &[0; 4]);
        Ok(self.bars(&header, regions))
    }

    fn bars(&mut self, header: &[u8], regions: &RegionSizes) -> Vec<Bar> {
        let mut bars: Vec<Bar> = Vec::new();
        for (index, size) in BarIndex::all().zip(regions) {
            let offset = BAR0.saturating_add(u16::from(index.number()).saturating_mul(4));
            let register = header
                .get(usize::from(offset)..)
                .and_then(|bytes| bytes.first_chunk());
            let register = register.map_or(0, |bytes| u32::from_le_bytes(*bytes));
            // The upper half of a 64-bit BAR is no BAR of its own.
            let is_upper = |last: &Bar| last.kind == BarKind::Memory64 && last.index.next() == Some(index);
            let upper = bars.last().is_some_and(is_upper);
            bars.extend(Bar::new(index, register, *size).filter(|_| !upper));
        }
        bars.extend(regions.last().and_then(|size| Bar::rom(*size)));
        for bar in &bars {
            let bytes = |bits: u64| {
                bits.to_le_bytes()
                    .into_iter()
                    .take(bar.register_size())
                    .collect::<Vec<_>>()
            };
            self.emulate(bar.register(), &bytes(bar.fixed_bits()));
            self.writable(bar.register(), &bytes(bar.writable_bits()));
        }
        bars
    }

    fn capabilities(&mut self) -> io::Result<Offsets> {
        let [first] = self.read_array(CAPABILITIES)?;
        let status = u16::from_le_bytes(self.read_array(STATUS)?);
        let first = if status & STATUS_CAPABILITIES != 0 {
            first
        } else {
            0
        };
        let all = self.walk(|view, failed| caps::standard(first, |offset| view.word(offset, failed)))?;
        let mut shown: Vec<&Capability> = Vec::new();
        for capability in &all {
            let end = all
                .iter()
                .map(|other| other.offset)
                .filter(|other| *other > capability.offset)
                .min();
            let end = end.unwrap_or(CONVENTIONAL_SIZE);
            let fits = self.size_of(capability)? <= end.saturating_sub(capability.offset);
            if !fits {
                log::warn!(
                    "capability {:#x} at {:#x} is hidden: it runs into {end:#x}",
                    capability.id,
                    capability.offset
                );
            }
            if fits && !HIDDEN_STANDARD.contains(&capability.id) {
                shown.push(capability);
            } else {
                self.hide(capability.offset, end);
            }
        }
        self.link_standard(&shown);
        let find = |id| {
            shown
                .iter()
                .find(|capability| capability.id == id)
                .map(|capability| capability.offset)
        };
        let offsets = Offsets {
            msi: find(cap::MSI),
            msix: find(cap::MSIX),
            power: find(cap::PM),
            express: find(cap::EXPRESS),
            advanced: find(cap::AF),
        };
        self.express(offsets.express)?;
        if let Some(offset) = offsets.advanced {
            self.emulate_bits(offset.saturating_add(AF_CONTROL), &[AF_FLR], &[0]);
        }
        Ok(offsets)
    }

    /// How many bytes a capability has at least, of those whose registers are emulated.
    fn size_of(&mut self, capability: &Capability) -> io::Result<u16> {
        Ok(match capability.id {
            cap::MSI => {
                let control = self.read_array(capability.offset.saturating_add(MsiLayout::CONTROL))?;
                MsiLayout::new(u16::from_le_bytes(control)).size()
            }
            cap::MSIX => MSIX_PBA.saturating_add(4),
            cap::EXPRESS => EXPRESS_CONTROL.saturating_add(4),
            cap::PM | cap::AF => 8,
            _ => 2,
        })
    }

    /// Makes the list lead through the shown capabilities only.
    fn link_standard(&mut self, shown: &[&Capability]) {
        let offset_of = |capability: Option<&&Capability>| {
            capability
                .and_then(|capability| u8::try_from(capability.offset).ok())
                .unwrap_or(0)
        };
        self.emulate(CAPABILITIES, &[offset_of(shown.first())]);
        let [bit, _] = STATUS_CAPABILITIES.to_le_bytes();
        self.emulate_bits(STATUS, &[bit], &[if shown.is_empty() { 0 } else { bit }]);
        for (index, capability) in shown.iter().enumerate() {
            let next = offset_of(shown.get(index.saturating_add(1)));
            self.emulate(capability.offset, &[capability.id, next]);
        }
    }

    /// An endpoint behind no port is one that is integrated in the root complex, as real ones on bus 0 are
    /// (PCIe 1.3.2.3).
    fn express(&mut self, offset: Option<u16>) -> io::Result<()> {
        let Some(offset) = offset else { return Ok(()) };
        let flags = u16::from_le_bytes(self.read_array(offset.saturating_add(EXPRESS_FLAGS))?);
        if matches!(flags & EXPRESS_TYPE, EXPRESS_ENDPOINT | EXPRESS_LEGACY_ENDPOINT) {
            let [mask, _] = EXPRESS_TYPE.to_le_bytes();
            let [kind, _] = EXPRESS_INTEGRATED.to_le_bytes();
            self.emulate_bits(offset.saturating_add(EXPRESS_FLAGS), &[mask], &[kind]);
        }
        // FLR is ours to do, and reads as zero (PCIe 7.5.3.4).
        let [low, high] = EXPRESS_FLR.to_le_bytes();
        self.emulate_bits(offset.saturating_add(EXPRESS_CONTROL), &[low, high], &[0, 0]);
        Ok(())
    }

    fn extended_capabilities(&mut self) -> io::Result<()> {
        let all = self.walk(|view, failed| caps::extended(|offset| view.long(offset, failed)))?;
        let is_hidden = |capability: &&ExtendedCapability| HIDDEN_EXTENDED.contains(&capability.id);
        for hidden in all.iter().filter(is_hidden) {
            let next = all
                .iter()
                .map(|other| other.offset)
                .filter(|other| *other > hidden.offset)
                .min();
            self.hide(hidden.offset, next.unwrap_or(EXTENDED_SIZE));
        }
        let shown: Vec<_> = all.iter().filter(|capability| !is_hidden(capability)).collect();
        // The list starts at 0x100 whatever is there: what is hidden becomes a link to the first that is
        // shown.
        let hidden_head = all.first().filter(is_hidden).map(|head| ExtendedCapability {
            id: ext::NULL,
            version: 0,
            ..*head
        });
        let list: Vec<&ExtendedCapability> = hidden_head.iter().chain(shown).collect();
        for (index, capability) in list.iter().enumerate() {
            let next = list.get(index.saturating_add(1)).map_or(0, |next| next.offset);
            let header =
                u32::from(capability.id) | u32::from(capability.version) << 16 | u32::from(next) << 20;
            self.emulate(capability.offset, &header.to_le_bytes());
        }
        Ok(())
    }

    /// All registers of MSI; the capability's form is the device's.
    fn msi(&mut self, offset: u16) -> io::Result<MsiLayout> {
        let control = u16::from_le_bytes(self.read_array(offset.saturating_add(MsiLayout::CONTROL))?);
        let control = control & !(msi::ENABLE | msi::MULTIPLE_ENABLE);
        let layout = MsiLayout::new(control);
        let at = |register: u16| offset.saturating_add(register);
        let body = layout.size().saturating_sub(MsiLayout::ADDRESS);
        self.emulate(at(MsiLayout::CONTROL), &control.to_le_bytes());
        self.emulate(at(MsiLayout::ADDRESS), &vec![0; usize::from(body)]);
        self.writable(
            at(MsiLayout::CONTROL),
            &(msi::ENABLE | msi::MULTIPLE_ENABLE).to_le_bytes(),
        );
        // A message is a dword: the lower two bits of its address are reserved (PCI 6.8.1.4).
        self.writable(at(MsiLayout::ADDRESS), &(!0b11_u32).to_le_bytes());
        self.writable(at(layout.data()), &[0xff; 2]);
        for register in layout.upper().into_iter().chain(layout.mask()) {
            self.writable(at(register), &[0xff; 4]);
        }
        Ok(layout)
    }

    /// Message control, table and PBA registers of MSI-X.
    fn msix(&mut self, offset: u16) -> io::Result<Option<MsixLayout>> {
        let control = u16::from_le_bytes(self.read_array(offset.saturating_add(MSIX_CONTROL))?) & MSIX_SIZE;
        let table = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_TABLE))?);
        let pba = u32::from_le_bytes(self.read_array(offset.saturating_add(MSIX_PBA))?);
        self.emulate(offset.saturating_add(MSIX_CONTROL), &control.to_le_bytes());
        self.writable(
            offset.saturating_add(MSIX_CONTROL),
            &(MSIX_ENABLE | MSIX_FUNCTION_MASK).to_le_bytes(),
        );
        self.emulate(offset.saturating_add(MSIX_TABLE), &table.to_le_bytes());
        self.emulate(offset.saturating_add(MSIX_PBA), &pba.to_le_bytes());
        let layout = MsixLayout::new(control, table, pba);
        if layout.is_none() {
            log::warn!("the MSI-X capability at {offset:#x} names a BAR that cannot be: MSI-X will not work");
        }
        Ok(layout)
    }

    /// Runs a walk whose reads may fail, and gives the first failure.
    fn walk<T>(&mut self, walk: impl FnOnce(&mut Self, &mut Option<io::Error>) -> T) -> io::Result<T> {
        let mut failed = None;
        let found = walk(self, &mut failed);
        failed.map_or(Ok(found), Err)
    }

    fn word(&mut self, offset: u16, failed: &mut Option<io::Error>) -> u16 {
        u16::from_le_bytes(self.read_array(offset).unwrap_or_else(|error| {
            *failed = Some(error);
            [0; 2]
        }))
    }

    fn long(&mut self, offset: u16, failed: &mut Option<io::Error>) -> u32 {
        u32::from_le_bytes(self.read_array(offset).unwrap_or_else(|error| {
            *failed = Some(error);
            [0; 4]
        }))
    }

    fn read_array<const N: usize>(&mut self, offset: u16) -> io::Result<[u8; N]> {
        let mut data = [0; N];
        (self.read)(offset, &mut data)?;
        Ok(data)
    }

    /// Bytes that are ours and have these values.
    fn emulate(&mut self, offset: u16, values: &[u8]) {
        self.emulate_bits(offset, &vec![0xff; values.len()], values);
    }

    fn emulate_bits(&mut self, offset: u16, masks: &[u8], values: &[u8]) {
        for ((byte, mask), value) in self
            .bytes
            .iter_mut()
            .skip(usize::from(offset))
            .zip(masks)
            .zip(values)
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

    /// Zeros that ignore writes.
    fn hide(&mut self, start: u16, end: u16) {
        let length = usize::from(end.saturating_sub(start));
        self.emulate(start, &vec![0; length]);
    }
}
