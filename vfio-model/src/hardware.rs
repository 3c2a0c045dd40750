//! The device itself: config space, memory, interrupt pin and pending bits. The state does not
//! depend on open files.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vfio_bindings::bindings::vfio as sys;

use crate::describe::{AfterReset, PciFunction};

/// Registers of config space (PCI 3.0, 6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;

/// `Command` (PCI 3.0, 6.2.2).
const IO_SPACE: u8 = 1;
const MEMORY_SPACE: u8 = 1 << 1;
const BUS_MASTER: u8 = 1 << 2;
/// In the upper byte: Interrupt Disable.
const INTX_DISABLE: u8 = 1 << 2;
/// `Status`: Interrupt Status (PCI 3.0, 6.2.3).
const INTERRUPT_STATUS: u8 = 1 << 3;

/// Ids of capabilities.
const POWER_MANAGEMENT: u8 = 0x01;
const MSIX: u8 = 0x11;

/// The power state in the control register of power management (PCI PM 1.2, 3.2.4).
const POWER_STATE: u8 = 0b11;
const D3HOT: u8 = 0b11;

/// The number of capabilities that fit into 256 bytes.
const MAX_CAPABILITIES: usize = 48;

/// The bytes of config space that vfio-pci answers from memory (`init_pci_cap_basic_perm`): vendor
/// and device ID, BARs, ROM, the pointer to the capabilities, interrupt line and pin.
const VIRTUAL: [Range<usize>; 5] = [0..4, 0x10..0x28, 0x30..0x34, 0x34..0x35, 0x3c..0x3e];

/// A region's offset in a device's file is its index above these bits (`VFIO_PCI_OFFSET_SHIFT`).
const INDEX_SHIFT: u32 = 40;

/// Changes a byte of config space.
fn set(config: &mut [u8], offset: usize, value: u8) {
    config.iter_mut().skip(offset).take(1).for_each(|byte| *byte = value);
}

/// The offset in a device's file of an offset in a region.
pub(crate) fn position(index: u32, offset: u64) -> u64 {
    (u64::from(index) << INDEX_SHIFT).saturating_add(offset)
}

/// The region and its offset of an offset in a device's file.
pub(crate) fn split_position(position: u64) -> Option<(u32, u64)> {
    let index = u32::try_from(position >> INDEX_SHIFT).ok()?;
    Some((index, position & (1_u64 << INDEX_SHIFT).saturating_sub(1)))
}

/// The device behind vfio-pci.
pub(crate) struct Hardware {
    power_on: Vec<u8>,
    config: Vec<u8>,
    /// Read-only zero bits of config space, by offset.
    zeros: Vec<(u64, u8)>,
    /// All other regions, at their offsets in the device's file.
    memory: Option<Arc<File>>,
    /// The interrupt pin is asserted.
    asserted: bool,
    /// The vectors of MSI-X that fired while the host masked them.
    pub pending: BTreeSet<u32>,
    /// The device does not respond: reads give all-ones, and writes have no effect.
    pub absent: bool,
    /// The power state does not change.
    pub power_is_stuck: bool,
    /// The power state as the kernel knows it (`pci_dev.current_state`), if it is not the device's.
    known_power: Option<u8>,
    /// The state of the device after its next reset.
    pub after_reset: Option<AfterReset>,
}

impl fmt::Debug for Hardware {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hardware").finish_non_exhaustive()
    }
}

impl Hardware {
    pub fn new(function: &PciFunction) -> Self {
        let mut config = function.config.clone();
        let region = function.regions.get(sys::VFIO_PCI_CONFIG_REGION_INDEX as usize);
        let size = region.map_or(0, |region| usize::try_from(region.size).unwrap_or(0));
        config.resize(size, 0);
        Self {
            power_on: config.clone(),
            config,
            zeros: function.zeros.clone(),
            memory: None,
            asserted: false,
            pending: BTreeSet::new(),
            absent: false,
            power_is_stuck: false,
            known_power: None,
            after_reset: None,
        }
    }

    /// The memory file, made at its first use.
    pub fn memory(&mut self) -> io::Result<&Arc<File>> {
        let memory = match self.memory.take() {
            Some(memory) => memory,
            None => Arc::new(new_memory()?),
        };
        Ok(self.memory.insert(memory))
    }

    /// Reads config space up to its end. The bytes that vfio-pci virtualizes have their values even
    /// if the device does not respond.
    pub fn read_config(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.config.get(offset..).unwrap_or_default();
        for ((to, from), at) in data.iter_mut().zip(bytes).zip(offset..) {
            let responds = !self.absent || VIRTUAL.iter().any(|range| range.contains(&at));
            *to = if responds { *from } else { 0xff };
        }
    }

    /// Writes config space up to its end.
    pub fn write_config(&mut self, offset: usize, data: &[u8]) {
        let power = self.power_control();
        let bytes = self.config.get_mut(offset..).unwrap_or_default();
        for ((byte, value), at) in bytes.iter_mut().zip(data).zip(offset as u64..) {
            let is_power = power.is_some_and(|power| power as u64 == at);
            // `pci_set_power_state` does nothing if the kernel knows that state.
            let is_known = self.known_power == Some(*value & POWER_STATE);
            if self.absent || is_power && (self.power_is_stuck || is_known) {
                continue;
            }
            self.known_power = self.known_power.filter(|_| !is_power);
            let zeros = self.zeros.iter().filter(|(place, _)| *place == at);
            *byte = zeros.fold(*value, |value, (_, bits)| value & !bits);
        }
    }

    fn config_byte(&self, offset: usize) -> u8 {
        self.config.get(offset).copied().unwrap_or(0)
    }

    /// Resets config space, the pin and the pending bits to their values at power-on.
    pub fn power_on(&mut self) -> io::Result<()> {
        self.config.clone_from(&self.power_on);
        self.known_power = None;
        self.asserted = false;
        let pending = self.pending.clone();
        pending.into_iter().try_for_each(|vector| self.set_pending(vector, false))
    }

    /// Resets the function, which is then in the state that a test chose.
    pub fn reset(&mut self) -> io::Result<()> {
        self.power_on()?;
        match self.after_reset.take() {
            None => {}
            Some(AfterReset::Absent) => self.absent = true,
            Some(AfterReset::Present) => self.absent = false,
            Some(AfterReset::InD3hot) => self.set_power_state(D3HOT),
            Some(AfterReset::OtherRevision(revision)) => {
                set(&mut self.config, REVISION, revision);
            }
        }
        Ok(())
    }

    /// Changes the power state behind the kernel.
    pub fn set_power_state(&mut self, state: u8) {
        if let Some(at) = self.power_control() {
            let known = self.config_byte(at) & POWER_STATE;
            self.known_power.get_or_insert(known);
            set(&mut self.config, at, state);
        }
    }

    /// `pci_enable_device`.
    pub fn enable(&mut self) {
        self.write_config(COMMAND, &[self.config_byte(COMMAND) | IO_SPACE | MEMORY_SPACE]);
    }

    /// `pci_clear_master`.
    pub fn clear_master(&mut self) {
        self.write_config(COMMAND, &[self.config_byte(COMMAND) & !BUS_MASTER]);
    }

    pub fn masters_bus(&self) -> bool {
        !self.absent && self.config_byte(COMMAND) & BUS_MASTER != 0
    }

    /// Whether the pin is asserted and Interrupt Disable is clear.
    pub fn asserts_intx(&self) -> bool {
        let disables = self.config_byte(COMMAND.saturating_add(1)) & INTX_DISABLE != 0;
        self.asserted && !disables
    }

    /// Asserts the pin or deasserts it. Interrupt Status shows the pin even with Interrupt Disable
    /// set.
    pub fn assert_pin(&mut self, asserted: bool) {
        self.asserted = asserted;
        let status = self.config_byte(STATUS) & !INTERRUPT_STATUS;
        self.write_config(STATUS, &[status | if asserted { INTERRUPT_STATUS } else { 0 }]);
    }

    /// Whether the device decodes its memory regions: Memory Space is enabled, and the device is
    /// not in D3hot (`__vfio_pci_memory_enabled`). A virtual function does not implement the Memory
    /// Space bit (PCIe 5.0, 9.3.4.1.3).
    pub fn decodes_memory(&self) -> bool {
        let has_no_bit =
            |(offset, bits): &(u64, u8)| *offset == COMMAND as u64 && bits & MEMORY_SPACE != 0;
        let enabled =
            self.config_byte(COMMAND) & MEMORY_SPACE != 0 || self.zeros.iter().any(has_no_bit);
        let state = self.power_control().map_or(0, |at| self.config_byte(at) & POWER_STATE);
        enabled && state != D3HOT && !self.absent
    }

    /// The offset of the control register of power management.
    pub fn power_control(&self) -> Option<usize> {
        self.capability(POWER_MANAGEMENT)?.checked_add(4)
    }

    /// Whether a region is a memory BAR or the ROM.
    pub fn is_memory(&self, region: u32) -> bool {
        let register = (region as usize).saturating_mul(4).saturating_add(BAR0);
        let is_io = || self.power_on.get(register).is_some_and(|low| low & 1 != 0);
        match region {
            ..sys::VFIO_PCI_ROM_REGION_INDEX => !is_io(),
            sys::VFIO_PCI_ROM_REGION_INDEX => true,
            _ => false,
        }
    }

    /// The offset of a capability. The list is read-only, so its values at power-on are right.
    fn capability(&self, id: u8) -> Option<usize> {
        let byte = |at: usize| self.power_on.get(at).copied();
        let next = |at: &usize| byte(at.saturating_add(1)).map(usize::from);
        let first = byte(CAPABILITIES).map(usize::from);
        let mut list = std::iter::successors(first, next).take(MAX_CAPABILITIES);
        list.find(|at| *at != 0 && byte(*at) == Some(id))
    }

    /// Sets or clears a pending bit (PCI 3.0, 6.8.2.8).
    pub fn set_pending(&mut self, vector: u32, pending: bool) -> io::Result<()> {
        match pending {
            true => self.pending.insert(vector),
            false => self.pending.remove(&vector),
        };
        let Some(byte) = self.pending_byte(vector) else {
            return Ok(());
        };
        let mut bits = [0];
        let bit = 1_u8.wrapping_shl(vector);
        let memory = self.memory()?;
        memory.read_exact_at(&mut bits, byte)?;
        bits = bits.map(|bits| if pending { bits | bit } else { bits & !bit });
        memory.write_all_at(&bits, byte)
    }

    /// The byte of a vector's pending bit in the memory file. The bit is the vector modulo 8.
    fn pending_byte(&self, vector: u32) -> Option<u64> {
        let register = self.capability(MSIX)?.checked_add(8)?;
        let place = self.power_on.get(register..)?.first_chunk()?;
        let place = u32::from_le_bytes(*place);
        let (bar, offset) = (place & 0b111, place & !0b111);
        position(bar, u64::from(offset)).checked_add(u64::from(vector / 8))
    }
}

/// A sparse file with room for all regions before config space.
fn new_memory() -> io::Result<File> {
    let file =
        File::from(memfd_create(c"vfio-model", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
    file.set_len(position(sys::VFIO_PCI_CONFIG_REGION_INDEX, 0))?;
    Ok(file)
}
