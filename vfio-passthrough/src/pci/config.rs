//! Config space as the guest sees it: an overlay of bytes over the device's own.
//!
//! Each bit is either *emulated* (ours; some of those *writable* by the guest) or *forwarded* (the
//! device's, as the host's kernel presents it). Which is which is decided once, in `view`. Nothing
//! here talks to the device: a write returns what it asks for.

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
    /// What the emulated bits are.
    pub value: u8,
    /// Which bits are ours.
    pub emulated: u8,
    /// Which of those the guest can change.
    pub writable: u8,
}

/// Where the registers are that do something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Offsets {
    pub msi: Option<u16>,
    pub msix: Option<u16>,
    pub power: Option<u16>,
    /// The function level resets that the function has, of PCI Express and of conventional PCI.
    pub resets: [Option<ResetBit>; 2],
}

/// A bit that resets the function when it is written, and the bit that says that it does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ResetBit {
    /// The byte and the bit in it that resets.
    pub initiate: (u16, u8),
    /// The byte and the bit in it that tells.
    pub capable: (u16, u8),
}

bitflags::bitflags! {
    /// What a write of the guest asks for, beyond bytes.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Touched: u8 {
        /// The command register has a new value.
        const COMMAND = 1 << 0;
        /// A BAR or the command register was written, with whatever value.
        const BARS = 1 << 1;
        /// MSI-X message control was written.
        const MSIX = 1 << 2;
        /// A register of MSI was written.
        const MSI = 1 << 5;
        /// The function may be in another power state afterwards.
        const POWER = 1 << 3;
        /// The guest asked for a function level reset.
        const RESET = 1 << 4;
    }
}

/// The outcome of a guest's write.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Bytes that are the device's, by offset.
    pub forward: Vec<(u16, Vec<u8>)>,
    /// Registers that do something.
    pub touched: Touched,
}

/// The guest's view of a function's config space.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigSpace {
    pub(super) bytes: Vec<Byte>,
    pub(super) power_on: Vec<Byte>,
    pub(super) offsets: Offsets,
    pub(super) bars: Vec<Bar>,
    pub(super) msi: Option<MsiLayout>,
    pub(super) msix: Option<MsixLayout>,
    /// In a low-power state the function answers config accesses only.
    pub(super) in_low_power: bool,
    /// The BARs, a bit each, that hold what sizing leaves behind: they are no address.
    pub(super) sizing: u8,
}

impl ConfigSpace {
    /// The BARs that the function has, in order, and its ROM.
    pub fn bars(&self) -> &[Bar] {
        &self.bars
    }

    /// Where the structures of MSI-X are, if the function has it.
    pub fn msix(&self) -> Option<MsixLayout> {
        self.msix
    }

    /// The form of the MSI capability, if the function has it.
    pub fn msi(&self) -> Option<MsiLayout> {
        self.msi
    }

    /// True where reading these bytes reads pending bits of MSI.
    pub fn reads_msi_pending(&self, offset: u16, length: usize) -> bool {
        let Some(pending) = self.msi_register(|layout| layout.pending()) else {
            return false;
        };
        let end = usize::from(offset).saturating_add(length);
        usize::from(pending) < end && offset < pending.saturating_add(4)
    }

    /// Sets the pending bits of MSI, a bit a vector, which the guest only reads.
    pub fn set_msi_pending(&mut self, bits: u32) {
        let Some(pending) = self.msi_register(|layout| layout.pending()) else {
            return;
        };
        let bytes = self.bytes.iter_mut().skip(usize::from(pending));
        bytes.zip(bits.to_le_bytes()).for_each(|(byte, value)| byte.value = value);
    }

    /// What the guest asks of the host by MSI.
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

    /// The offset of the power management control register.
    pub fn power_control(&self) -> Option<u16> {
        self.offsets.power.and_then(|offset| offset.checked_add(PM_CONTROL))
    }

    /// Back to how it was at power-on: BARs not placed, nothing decoded.
    pub fn reset(&mut self) {
        self.bytes.clone_from(&self.power_on);
        self.in_low_power = false;
        self.sizing = 0;
    }

    /// True where the device has to be asked to read these bytes.
    pub fn needs_device(&self, offset: u16, length: usize) -> bool {
        self.window(offset, length).iter().any(|byte| byte.emulated != 0xff)
    }

    /// Lays our bits over `data`, which is what the device said, or zeros where it was not asked.
    /// Bytes past the end of the space read as all-ones.
    pub fn overlay(&self, offset: u16, data: &mut [u8]) {
        let known = self.window(offset, data.len());
        for (index, out) in data.iter_mut().enumerate() {
            *out = match known.get(index) {
                Some(byte) => (*out & !byte.emulated) | (byte.value & byte.emulated),
                None => 0xff,
            };
        }
    }

    /// Takes a write of the guest. Accesses behave as their bytes do, whatever registers they
    /// straddle.
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

    /// A guest that sizes a BAR writes ones to all of it (PCI 6.2.5.1), a 64-bit one half by half.
    /// Of a lower half alone the address bits do not tell: all of them are ones in addresses that
    /// exist. The lowest bits do: in no address that is written all are ones.
    fn note_sizing(&mut self, at: u16, value: u8) {
        let own = self.bars.iter().find(|bar| bar.register() == at);
        if let Some(bit) = own.and_then(|bar| 1_u8.checked_shl(bar.index.number().into())) {
            self.sizing = if value == 0xff { self.sizing | bit } else { self.sizing & !bit };
        }
    }

    fn write_byte(&mut self, at: u16, value: u8, forward: &mut Vec<(u16, Vec<u8>)>) {
        let Some(byte) = self.bytes.get_mut(usize::from(at)) else {
            return;
        };
        let ours = byte.emulated & byte.writable;
        byte.value = (byte.value & !ours) | (value & ours);
        if byte.emulated == 0xff {
            return;
        }
        let value = (value & !byte.emulated) | (byte.value & byte.emulated);
        match forward.last_mut() {
            // Registers are written whole where they can be: bytes that follow one another go
            // together.
            Some((start, run))
                if usize::from(at).checked_sub(usize::from(*start)) == Some(run.len()) =>
            {
                run.push(value)
            }
            _ => forward.push((at, vec![value])),
        }
    }

    /// What writing this byte sets off.
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

    /// The command register as the guest set it.
    pub fn command(&self) -> Command {
        Command::from_bits_retain(self.u16_at(COMMAND))
    }

    /// MSI-X message control as the guest set it.
    pub fn msix_control(&self) -> Option<u16> {
        Some(self.u16_at(self.offsets.msix?.checked_add(MSIX_CONTROL)?))
    }

    /// Tells whether the function is in another power state than D0, in which it decodes nothing
    /// (PM 5.4).
    pub fn set_in_low_power(&mut self, in_low_power: bool) {
        self.in_low_power = in_low_power;
    }

    /// As [`set_in_low_power`](Self::set_in_low_power) told.
    pub fn is_in_low_power(&self) -> bool {
        self.in_low_power
    }

    /// Where the guest placed a BAR and lets it decode, or `None` where it decodes nothing.
    pub fn decoded(&self, bar: &Bar) -> Option<u64> {
        let decode = match bar.kind.space() {
            Space::Memory => Command::MEMORY,
            Space::Io => Command::IO,
        };
        let sizing =
            u32::from(self.sizing).checked_shr(bar.index.number().into()).unwrap_or(0) & 1 != 0;
        let on = self.command().contains(decode) && !self.in_low_power && !sizing;
        bar.address(self.register(bar)).filter(|_| on)
    }

    /// A BAR's register, with its upper half if it has one.
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

    fn window(&self, offset: u16, length: usize) -> &[Byte] {
        let rest = self.bytes.get(usize::from(offset)..).unwrap_or_default();
        rest.get(..length).unwrap_or(rest)
    }
}

#[cfg(test)]
mod tests;
