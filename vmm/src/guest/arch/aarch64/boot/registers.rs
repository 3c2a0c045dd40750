//! Registers of the first CPU at the entry (Documentation/arch/arm64/booting.rst: x0 is the device
//! tree's address, x1 to x3 are 0). KVM resets the others as the protocol wants them.

use std::mem::offset_of;

use kvm_bindings::{KVM_REG_ARM_CORE, KVM_REG_ARM64, KVM_REG_SIZE_U64, kvm_regs, user_pt_regs};
use kvm_ioctls::VcpuFd;
use vm_memory::GuestMemoryMmap;

use crate::counters::Calls;
use crate::error::Error;

/// The number of a core register: its offset in `kvm_regs` in units of 32 bits.
const fn core(offset: usize) -> u64 {
    KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE as u64 | (offset / 4) as u64
}

/// The program counter.
pub(in crate::guest::arch::aarch64) const PC: u64 =
    core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, pc));
const X0: u64 = core(offset_of!(kvm_regs, regs) + offset_of!(user_pt_regs, regs));

/// The entry state of the first CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The program counter.
    pub pc: u64,
    /// The address of the device tree.
    pub tree: u64,
}

/// Sets up the first CPU for `entry`.
pub(crate) fn set_up(
    vcpu: &VcpuFd,
    _: &GuestMemoryMmap,
    entry: Entry,
    calls: &Calls,
) -> Result<(), Error> {
    for (register, value) in [(PC, entry.pc), (X0, entry.tree)] {
        vcpu.set_one_reg(register, &value.to_le_bytes()).map_err(Error::kvm("KVM_SET_ONE_REG"))?;
        calls.add("KVM_SET_ONE_REG", 1);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_registers_are_those_of_the_api() {
        // Documentation/virt/kvm/api.rst, 4.68: the table of arm64 core registers.
        assert_eq!((X0, PC), (0x6030_0000_0010_0000, 0x6030_0000_0010_0040));
    }
}
