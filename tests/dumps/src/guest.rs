//! A guest that has the device, and programs it as its last user did.

use std::error::Error;
use std::sync::Arc;

use vfio_passthrough::model::{Faults, Guest, PciDevice};
use vfio_passthrough::{Bar, PassthroughFunction, ResetPolicy, Space};

use crate::device;
use crate::dump::Function;
use crate::lists::{CONVENTIONAL, EXTENDED};

/// The registers that a guest's firmware and kernel set: command, cache line size and latency
/// timer, interrupt line.
const SET: [(usize, usize); 3] = [(0x0c, 2), (0x3c, 1), (0x04, 2)];

/// The function in its guest.
pub struct Assigned {
    /// The function.
    pub function: PassthroughFunction,
    /// Its device.
    pub device: Arc<PciDevice>,
    size: usize,
    _guest: Guest,
}

/// Assigns the function of a dump to a guest, which programs it.
///
/// # Errors
///
/// The error with which the library refuses it.
pub fn assign(dump: &Function) -> Result<Assigned, Box<dyn Error>> {
    let faults = Arc::new(Faults::default());
    let device = Arc::new(device::of(dump, faults.clone())?);
    let guest = Guest::new(faults);
    let policy = ResetPolicy::IfPossible;
    let services = guest.services();
    let function = PassthroughFunction::new(dump.address, device.clone(), &services, policy)?;
    let size = if dump.config.len() < EXTENDED { CONVENTIONAL } else { EXTENDED };
    let assigned = Assigned { function, device, size, _guest: guest };
    assigned.program(&dump.config);
    Ok(assigned)
}

impl Assigned {
    fn program(&self, config: &[u8]) {
        let mut free = Free { ports: 0x1000, memory: 0x8000_0000 };
        for bar in self.function.bars() {
            let address = free.place(bar, config).to_le_bytes();
            let _ = self.function.config_write(bar.register(), &address[..bar.register_size()]);
        }
        for (offset, size) in SET {
            let _ = self.function.config_write(offset as u16, &config[offset..offset + size]);
        }
    }

    /// The guest's view of config space: 256 or 4096 bytes.
    pub fn config(&self) -> Vec<u8> {
        let mut config = vec![0; self.size];
        for (offset, bytes) in (0..).step_by(4).zip(config.chunks_mut(4)) {
            self.function.config_read(offset, bytes);
        }
        config
    }
}

/// The next free addresses.
struct Free {
    ports: u64,
    memory: u64,
}

impl Free {
    /// The register of a BAR at its address in the dump, or else at a free one.
    fn place(&mut self, bar: &Bar, config: &[u8]) -> u64 {
        let mut register = [0; 8];
        let at = usize::from(bar.register());
        register[..bar.register_size()].copy_from_slice(&config[at..at + bar.register_size()]);
        let register = u64::from_le_bytes(register);
        let address = register & bar.address_bits();
        if address != 0 && bar.fits(address) {
            return register & bar.writable_bits();
        }
        let next = match bar.kind.space() {
            Space::Io => &mut self.ports,
            Space::Memory => &mut self.memory,
        };
        let address = next.next_multiple_of(bar.size);
        *next = address + bar.size;
        address
    }
}
