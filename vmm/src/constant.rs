//! Config space that never changes: the host bridge's, and that of the slots at the end of the bus, which are
//! empty. The guest has it as memory that it can only read, so that its enumeration of the bus does not leave it
//! for that: Linux reads some 75 registers of the former, and one of each of the latter. Its writes go where they
//! always went, and change nothing.

use std::ffi::c_void;
use std::io::{self, IoSlice, Write};
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::Arc;

use devices::{HostBridge, SLOTS};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::mman::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};
use resources::AddressRange;
use vfio_passthrough::host::{HostMemory, MemorySlot};
use vfio_passthrough::kvm::KvmHost;
use vm_memory::{Bytes, GuestAddress, GuestRegionMmap, MemoryRegionAddress};

const PAGE: usize = 4096;
/// Config space of the functions of one slot.
const SLOT: usize = 8 * PAGE;
/// What an empty slot's memory is made of, over and over: eight slots. More would be more memory, less would be more
/// calls of `mmap`.
const CHUNK: usize = 8 * SLOT;
/// An empty slot's page.
static EMPTY_PAGE: [u8; PAGE] = [0xff; PAGE];
const EMPTY: usize = CHUNK * (SLOTS as usize * SLOT / CHUNK);

/// The memory, for as long as the guest reboots.
pub struct Constant {
    bridge: Arc<GuestRegionMmap>,
    empty: Arc<Mapping>,
}

/// Its places in one VM, until this is dropped.
pub struct Placed {
    _slots: Vec<Box<dyn MemorySlot>>,
}

impl Constant {
    /// None where the host has no memory for it: the guest then leaves for each read, which is slow and right.
    pub fn new() -> Option<Self> {
        let made = Self::make();
        made.inspect_err(|error| log::debug!("config space is all trapped: {error}"))
            .ok()
    }

    fn make() -> io::Result<Self> {
        let bridge = GuestRegionMmap::from_range(GuestAddress(0), PAGE, None).map_err(io::Error::other)?;
        let written = bridge.write_slice(&HostBridge::page(), MemoryRegionAddress(0));
        written.map_err(io::Error::other)?;
        let mut file: std::fs::File = memfd_create(c"config-space", MFdFlags::MFD_CLOEXEC)?.into();
        if file.write_vectored(&[IoSlice::new(&EMPTY_PAGE); CHUNK / PAGE])? != CHUNK {
            return Err(io::ErrorKind::WriteZero.into());
        }
        Ok(Self {
            bridge: Arc::new(bridge),
            empty: Arc::new(Mapping::new(&file)?),
        })
    }

    /// Puts it into the guest's `ecam`, where slots from `first_absent` on are empty. What KVM refuses stays
    /// trapped.
    pub fn place(&self, host: &KvmHost, ecam: AddressRange, first_absent: u8) -> Placed {
        let offset = usize::from(first_absent).saturating_mul(SLOT);
        let empty = Tail {
            whole: Arc::clone(&self.empty),
            offset,
        };
        let places: [(u64, Arc<dyn HostMemory>); 2] = [
            (0, Arc::clone(&self.bridge) as _),
            (offset as u64, Arc::new(empty)),
        ];
        let place = |(offset, memory): (u64, Arc<dyn HostMemory>)| {
            let placed = host
                .memory()
                .place_read_only(ecam.start.saturating_add(offset), memory);
            placed
                .inspect_err(|error| log::debug!("config space at {offset:#x} is trapped: {error}"))
                .ok()
        };
        let there = places.into_iter().filter(|(_, memory)| memory.size() > 0);
        Placed {
            _slots: there.filter_map(place).collect(),
        }
    }
}

/// Config space of empty slots: [`EMPTY`] bytes, of a chunk in a file over and over, read-only.
struct Mapping(NonNull<c_void>);

// SAFETY: the value is a range of addresses that is its own, and hands out a raw pointer only.
unsafe impl Send for Mapping {}
// SAFETY: as for Send; there is no method that changes anything.
unsafe impl Sync for Mapping {}

// SAFETY: the range is mapped shared by `new`, is owned by this value, is unmapped in `drop` only, and no reference
// to it is ever made.
unsafe impl HostMemory for Mapping {
    fn host_address(&self) -> *mut u8 {
        self.0.as_ptr().cast()
    }

    fn size(&self) -> u64 {
        EMPTY as u64
    }
}

impl Mapping {
    /// `file` holds a chunk.
    fn new(file: &impl AsFd) -> io::Result<Self> {
        let invalid = || io::Error::from(io::ErrorKind::InvalidInput);
        let [chunk, size] = [CHUNK, EMPTY].map(NonZeroUsize::new);
        let (chunk, size) = chunk.zip(size).ok_or_else(invalid)?;
        let flags = MapFlags::MAP_PRIVATE | MapFlags::MAP_NORESERVE;
        // SAFETY: a new mapping, where the kernel finds room.
        let mapping = Self(unsafe { mmap_anonymous(None, size, ProtFlags::PROT_NONE, flags) }?);
        for offset in (0..EMPTY).step_by(CHUNK) {
            let place = NonZeroUsize::new(mapping.0.as_ptr().addr().saturating_add(offset));
            let flags = MapFlags::MAP_SHARED | MapFlags::MAP_FIXED;
            // SAFETY: it replaces part of the mapping that was just made, which nobody uses yet.
            unsafe { mmap(place, chunk, ProtFlags::PROT_READ, flags, file, 0) }?;
        }
        Ok(mapping)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range is this value's, and nobody uses it any more.
        if let Err(error) = unsafe { munmap(self.0, EMPTY) } {
            log::error!("munmap: {error}");
        }
    }
}

/// A mapping from an offset on.
struct Tail {
    whole: Arc<Mapping>,
    offset: usize,
}

// SAFETY: it is part of a mapping that is such memory, and holds it.
unsafe impl HostMemory for Tail {
    fn host_address(&self) -> *mut u8 {
        self.whole.host_address().wrapping_add(self.offset)
    }

    fn size(&self) -> u64 {
        self.whole.size().saturating_sub(self.offset as u64)
    }
}

/// A CPU that reads and writes config space, of what is placed in it.
#[cfg(test)]
pub(crate) mod fixture {
    use std::sync::Arc;

    use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};
    use resources::AddressRange;
    use vfio_passthrough::host::MemorySlot;
    use vfio_passthrough::kvm::KvmHost;
    use vm_memory::{Bytes, GuestAddress};

    use crate::memory::Ram;

    const CODE: u64 = 0x1000;
    /// Below 1 MiB, where real mode reaches it.
    pub const ECAM: u64 = 0x1_0000;
    /// `mov ax, [offset]`
    pub const READ: u8 = 0xa1;
    /// `mov [offset], ax`
    pub const WRITE: u8 = 0xa3;

    pub struct Machine {
        pub host: KvmHost,
        vcpu: VcpuFd,
        ram: Ram,
        _slots: Vec<Box<dyn MemorySlot>>,
        _vm: Arc<VmFd>,
    }

    impl Machine {
        /// None where there is no KVM, which is said.
        pub fn new(test: &str) -> Option<Self> {
            let Some(vm) = Kvm::new().ok().and_then(|kvm| kvm.create_vm().ok()) else {
                eprintln!("{test} did not run: /dev/kvm does not open here");
                return None;
            };
            let vm = Arc::new(vm);
            let host = KvmHost::new(Arc::clone(&vm), 0..4, 24..25);
            let ram = Ram::new(&[AddressRange::new(CODE, 0x1000)]).unwrap();
            Some(Self {
                vcpu: vm.create_vcpu(0).unwrap(),
                _slots: ram.place(host.memory().as_ref()).unwrap(),
                ram,
                host,
                _vm: vm,
            })
        }

        /// What an instruction brings that moves AX from or to ECAM: the value, or an exit.
        pub fn access(&mut self, opcode: u8, offset: u64) -> Option<u16> {
            // With DS, up to 64 KiB from its base on.
            let code = [opcode, 0, 0, 0xf4];
            self.ram.memory().write_slice(&code, GuestAddress(CODE)).unwrap();
            let mut special = self.vcpu.get_sregs().unwrap();
            (special.cs.base, special.cs.selector) = (0, 0);
            special.ds.base = ECAM + offset;
            special.ds.selector = u16::try_from(special.ds.base >> 4).unwrap_or(0);
            self.vcpu.set_sregs(&special).unwrap();
            let mut registers = self.vcpu.get_regs().unwrap();
            (registers.rip, registers.rflags, registers.rax) = (CODE, 2, 0x5a5a);
            self.vcpu.set_regs(&registers).unwrap();
            let exited = !matches!(self.vcpu.run().unwrap(), VcpuExit::Hlt);
            if exited {
                assert!(matches!(self.vcpu.run().unwrap(), VcpuExit::Hlt));
            }
            let ax = self.vcpu.get_regs().unwrap().rax as u16;
            (!exited).then_some(ax)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::{ECAM, Machine, READ, WRITE};
    use super::*;

    fn place(machine: &Machine, first_absent: u8) -> Placed {
        let ecam = AddressRange::new(ECAM, 1 << 20);
        Constant::new().unwrap().place(&machine.host, ecam, first_absent)
    }

    #[test]
    fn what_never_changes_is_read_without_an_exit_and_all_else_is_not() {
        let name = "what_never_changes_is_read_without_an_exit_and_all_else_is_not";
        let Some(mut machine) = Machine::new(name) else {
            return;
        };
        let _placed = place(&machine, 2);
        let slot = SLOT as u64;
        assert_eq!(machine.access(READ, 0), Some(0x1b36), "the host bridge");
        assert_eq!(machine.access(READ, 0x0a), Some(0x0600), "its class");
        assert_eq!(machine.access(READ, 0x100), Some(0));
        assert_eq!(machine.access(READ, PAGE as u64), None, "function 1 of it");
        assert_eq!(machine.access(READ, slot), None, "a function");
        assert_eq!(machine.access(READ, 2 * slot - 2), None, "the end of its slot");
        for offset in [2 * slot, 2 * slot + 0xffe, 3 * slot + 5 * PAGE as u64, 9 * slot] {
            assert_eq!(
                machine.access(READ, offset),
                Some(0xffff),
                "{offset:#x} is absent"
            );
        }
        assert_eq!(machine.access(WRITE, 0x04), None, "a write");
        assert_eq!(machine.access(WRITE, 2 * slot), None);
        assert_eq!(machine.access(READ, 2 * slot), Some(0xffff));
    }

    #[test]
    fn a_full_bus_has_no_empty_slots() {
        let Some(mut machine) = Machine::new("a_full_bus_has_no_empty_slots") else {
            return;
        };
        let _placed = place(&machine, SLOTS);
        assert_eq!(machine.access(READ, 0), Some(0x1b36));
        assert_eq!(machine.access(READ, 20 * SLOT as u64), None);
    }
}
