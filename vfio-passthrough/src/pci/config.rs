//! Config space as the guest sees it: an overlay over the bytes of the device.
//!
//! Each bit is either *emulated* (its value is kept here; the guest can change it if it is
//! *writable*) or *forwarded* (its value is the device's, as vfio-pci virtualizes it). The module
//! `view` decides this once, at build. This module does not access the device: a write returns the
//! bytes to forward and the actions to take.

use super::bar::{Bar, Space};
use super::message::ProgrammedVectors;
use super::msi::{MsiLayout, MsiRegisters};
use super::msix::MsixLayout;
use super::regs::{
    BAR0, BARS_END, COMMAND, Command, MSIX_CONTROL, PM_CONTROL, PM_STATE, ROM, ROM_END, STATUS,
};

/// A byte of config space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Byte {
    /// The values of the emulated bits.
    pub value: u8,
    /// The mask of emulated bits.
    pub emulated: u8,
    /// The mask of emulated bits that the guest can change.
    pub writable: u8,
    /// The emulated bits that are zero for the guest, and one in the device: a forwarded write does
    /// not change them.
    pub withheld: u8,
}

/// The offsets of capabilities that matter to other parts than the view.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    pub msi: Option<u16>,
    pub msix: Option<u16>,
    pub power: Option<u16>,
    pub express: Option<u16>,
    /// The FLR bits of the PCI Express capability and of the Advanced Features capability, if the
    /// function supports FLR there.
    pub resets: [Option<ResetBit>; 2],
}

/// A bit that initiates an FLR, and the bit that reports support for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResetBit {
    /// The offset of the byte, and the bit in it that initiates the reset.
    pub initiate: (u16, u8),
    /// The offset of the byte, and the bit in it that reports support.
    pub capable: (u16, u8),
}

bitflags::bitflags! {
    /// The actions that a guest's write requires, apart from forwarded bytes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Touched: u8 {
        /// The command register has a new value.
        const COMMAND = 1 << 0;
        /// A BAR or the command register was written, with any value.
        const BARS = 1 << 1;
        /// MSI-X message control was written.
        const MSIX = 1 << 2;
        /// A register of MSI was written.
        const MSI = 1 << 5;
        /// The power state may change.
        const POWER = 1 << 3;
        /// The guest initiated an FLR.
        const RESET = 1 << 4;
        /// The guest enabled MSI or MSI-X, which was enabled in the same way.
        const ENABLE_AGAIN = 1 << 6;
    }
}

/// The result of a guest's write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The bytes to write to the device: runs, with their offsets.
    pub forward: Vec<(u16, Vec<u8>)>,
    /// The actions to take.
    pub touched: Touched,
}

/// The guest's view of a function's config space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    /// The first bytes, with the whole conventional space.
    pub(super) bytes: Vec<Byte>,
    /// All bytes after them: most of extended config space has no registers. The guest can change
    /// none of their emulated bits.
    pub(super) rest: Byte,
    /// The number of all bytes.
    pub(super) size: u16,
    /// The values after power-on of the conventional space, which has all that the guest can
    /// change.
    pub(super) power_on: Vec<u8>,
    pub(super) offsets: Offsets,
    pub(super) bars: Vec<Bar>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLayout>,
    /// The function is not in D0. It then responds to config accesses only.
    pub(super) in_low_power: bool,
    /// A bit for each BAR that the guest is sizing: its register holds no address.
    pub(super) sizing: u8,
}

impl ConfigSpace {
    /// The BARs of the function in ascending order, then its ROM.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// The layout of MSI-X, if the function has it.
    pub fn msix(&self) -> Option<MsixLayout> {
        self.msix
    }

    /// The layout of the MSI capability, if the function has it.
    pub fn msi(&self) -> Option<MsiLayout> {
        self.msi
    }

    /// Whether these bytes include pending bits of MSI.
    pub fn reads_msi_pending(&self, offset: u16, length: usize) -> bool {
        let Some(pending) = self.msi_register(|layout| layout.pending()) else {
            return false;
        };
        let end = usize::from(offset).saturating_add(length);
        usize::from(pending) < end && offset < pending.saturating_add(4)
    }

    /// Sets the pending bits of MSI, one for each vector. They are read-only for the guest.
    pub fn set_msi_pending(&mut self, bits: u32) {
        let Some(pending) = self.msi_register(|layout| layout.pending()) else {
            return;
        };
        let bytes = self.bytes.iter_mut().skip(usize::from(pending));
        bytes.zip(bits.to_le_bytes()).for_each(|(byte, value)| byte.value = value);
    }

    /// The MSI vectors that the guest programmed.
    pub fn msi_programmed(&self) -> ProgrammedVectors {
        let Some((layout, offset)) = self.msi.zip(self.offsets.msi) else {
            return ProgrammedVectors::default();
        };
        let at = |register: u16| offset.saturating_add(register);
        let upper = layout.upper().map_or(0, |upper| self.u32_at(at(upper)));
        layout.programmed(MsiRegisters {
            control: self.u16_at(at(MsiLayout::CONTROL)),
            address: u64::from(upper) << 32 | u64::from(self.u32_at(at(MsiLayout::ADDRESS))),
            data: self.u16_at(at(layout.data())),
            mask: layout.mask().map_or(0, |mask| self.u32_at(at(mask))),
        })
    }

    fn msi_register(&self, register: impl Fn(&MsiLayout) -> Option<u16>) -> Option<u16> {
        self.offsets.msi?.checked_add(register(self.msi.as_ref()?)?)
    }

    /// The offset of the power management control/status register, if the function has one.
    pub fn power_control(&self) -> Option<u16> {
        self.offsets.power.and_then(|offset| offset.checked_add(PM_CONTROL))
    }

    /// Whether the function is of conventional PCI: it has no PCI Express capability (PCIe 7.5.3).
    pub fn is_conventional(&self) -> bool {
        self.offsets.express.is_none()
    }

    /// Sets the state after power-on: no BAR is placed, nothing is decoded.
    pub fn reset(&mut self) {
        let bytes = self.bytes.iter_mut().zip(&self.power_on);
        bytes.for_each(|(byte, value)| byte.value = *value);
        self.in_low_power = false;
        self.sizing = 0;
    }

    /// Whether a read of these bytes must read the device.
    pub fn needs_device(&self, offset: u16, length: usize) -> bool {
        self.window(offset, length).any(|byte| byte.emulated != 0xff)
    }

    /// Replaces the emulated bits in `data`, which holds the device's bytes, or zeros if the device
    /// was not read. Bytes past the end of config space become all-ones.
    pub fn overlay(&self, offset: u16, data: &mut [u8]) {
        let mut known = self.window(offset, data.len());
        for out in data {
            *out = match known.next() {
                Some(byte) => (*out & !byte.emulated) | (byte.value & byte.emulated),
                None => 0xff,
            };
        }
    }

    /// Applies a guest's write. An access that spans registers behaves as its single bytes do.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Written {
        let mut written = Written::default();
        let before = self.command();
        for (at, value) in (offset..=u16::MAX).zip(data) {
            written.touched |= self.action_at(at, *value);
            self.note_sizing(at, *value);
            self.write_byte(at, *value, &mut written.forward);
        }
        written.touched.set(Touched::COMMAND, before != self.command());
        written
    }

    /// Notes whether the guest is sizing a BAR: it writes all-ones to the register (PCI 3.0,
    /// 6.2.5.1), to a 64-bit BAR in two halves. The address bits of the lower half do not show
    /// this: they are all ones in valid 64-bit addresses too. The lowest byte does: it is never
    /// 0xff in an address.
    fn note_sizing(&mut self, at: u16, value: u8) {
        let own = self.bars.iter().find(|bar| bar.register() == at);
        if let Some(bit) = own.and_then(|bar| 1_u8.checked_shl(bar.index.number().into())) {
            self.sizing = if value == 0xff { self.sizing | bit } else { self.sizing & !bit };
        }
    }

    fn write_byte(&mut self, at: u16, value: u8, forward: &mut Vec<(u16, Vec<u8>)>) {
        let Some(mut byte) = self.window(at, 1).next() else {
            return;
        };
        let writable = byte.emulated & byte.writable;
        byte.value = (byte.value & !writable) | (value & writable);
        if let Some(own) = self.bytes.get_mut(usize::from(at)) {
            *own = byte;
        }
        if byte.emulated == 0xff {
            return;
        }
        let value = (value & !byte.emulated) | (byte.value & byte.emulated) | byte.withheld;
        match forward.last_mut() {
            // Adjacent bytes are one run, so that a register is written by one call.
            Some((start, run))
                if usize::from(at).checked_sub(usize::from(*start)) == Some(run.len()) =>
            {
                run.push(value)
            }
            _ => forward.push((at, vec![value])),
        }
    }

    /// The actions that a write of this byte requires.
    fn action_at(&self, at: u16, value: u8) -> Touched {
        let is = |capability: Option<u16>, register: u16| {
            capability.and_then(|it| it.checked_add(register)) == Some(at)
        };
        let high = |register: u16| register.saturating_add(1);
        let mut touched = Touched::empty();
        touched.set(Touched::MSIX, is(self.offsets.msix, high(MSIX_CONTROL)));
        let msi = self.offsets.msi.zip(self.msi);
        let own = |(start, layout): (u16, MsiLayout)| {
            (start..start.saturating_add(layout.size())).contains(&at)
        };
        touched.set(Touched::MSI, msi.is_some_and(own));
        let enables = (is(self.offsets.msix, high(MSIX_CONTROL)) && value & 0x80 != 0)
            || (is(self.offsets.msi, MsiLayout::CONTROL) && value & 1 != 0);
        touched.set(Touched::ENABLE_AGAIN, enables && self.has_value(at, value));
        let moves = self.in_low_power || u16::from(value) & PM_STATE != 0;
        touched.set(Touched::POWER, is(self.offsets.power, PM_CONTROL) && moves);
        let mut resets = self.offsets.resets.iter().flatten();
        let initiates = |reset: &ResetBit| reset.initiate.0 == at && reset.initiate.1 & value != 0;
        touched.set(Touched::RESET, resets.any(initiates));
        touched.set(
            Touched::BARS,
            (COMMAND..STATUS).contains(&at)
                || (BAR0..BARS_END).contains(&at)
                || (ROM..ROM_END).contains(&at),
        );
        touched
    }

    /// Whether the bits of this byte that the guest can change have these values.
    fn has_value(&self, at: u16, value: u8) -> bool {
        let has = |byte: Byte| (byte.value ^ value) & byte.emulated & byte.writable == 0;
        self.window(at, 1).next().is_some_and(has)
    }

    /// The command register that the guest programmed.
    pub fn command(&self) -> Command {
        Command::from_bits_retain(self.u16_at(COMMAND))
    }

    /// MSI-X message control that the guest programmed, if the function has MSI-X.
    pub fn msix_control(&self) -> Option<u16> {
        Some(self.u16_at(self.offsets.msix?.checked_add(MSIX_CONTROL)?))
    }

    /// Sets whether the function is in a power state other than D0. It then decodes nothing (PM
    /// 1.2, 5.4).
    pub fn set_in_low_power(&mut self, in_low_power: bool) {
        self.in_low_power = in_low_power;
    }

    /// Whether the function is in a power state other than D0, as [set](Self::set_in_low_power).
    pub fn is_in_low_power(&self) -> bool {
        self.in_low_power
    }

    /// The address that a BAR decodes now, or `None` if it decodes nothing.
    pub fn decoded(&self, bar: &Bar) -> Option<u64> {
        let decode = match bar.kind.space() {
            Space::Memory => Command::MEMORY,
            Space::Io => Command::IO,
        };
        let on = self.command().contains(decode) && !self.in_low_power;
        self.placed(bar).filter(|_| on)
    }

    /// The address in a BAR's register, also if the BAR does not decode it. It is `None` while the
    /// BAR is sized.
    pub fn placed(&self, bar: &Bar) -> Option<u64> {
        let sizing = u32::from(self.sizing).checked_shr(bar.index.number().into()).unwrap_or(0);
        bar.address(self.register(bar)).filter(|_| sizing & 1 == 0)
    }

    /// The value of a BAR's register, upper half included.
    fn register(&self, bar: &Bar) -> u64 {
        let mut bytes = [0; 8];
        let known = self.window(bar.register(), bar.register_size());
        bytes.iter_mut().zip(known).for_each(|(value, byte)| *value = byte.value);
        u64::from_le_bytes(bytes)
    }

    fn u16_at(&self, offset: u16) -> u16 {
        u16::from_le_bytes(self.values(offset))
    }

    fn u32_at(&self, offset: u16) -> u32 {
        u32::from_le_bytes(self.values(offset))
    }

    fn values<const N: usize>(&self, offset: u16) -> [u8; N] {
        let mut values = [0; N];
        for (value, byte) in values.iter_mut().zip(self.window(offset, N)) {
            *value = byte.value;
        }
        values
    }

    fn window(&self, offset: u16, length: usize) -> impl Iterator<Item = Byte> {
        let start = usize::from(offset);
        let end = start.saturating_add(length).min(self.size.into());
        (start..end).map(|at| self.bytes.get(at).copied().unwrap_or(self.rest))
    }
}

#[cfg(test)]
mod tests;
