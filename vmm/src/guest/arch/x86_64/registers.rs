//! Registers of the first CPU at the entry.

use kvm_bindings::{Msrs, kvm_dtable, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::boot::Entry;
use crate::counters::Calls;
use crate::error::Error;

const GDT: u64 = 0x500;
/// GDT entries: null, null, code at selector 0x10, data at 0x18 (Linux's `__BOOT_CS` and
/// `__BOOT_DS`), TSS at 0x20.
const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
const TSS: u16 = 0x20;

const CR0_PE: u64 = 1 << 0;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 1 << 1;

const MSR_MISC_ENABLE: u32 = 0x1a0;
const MISC_ENABLE_FAST_STRING: u64 = 1;
const MSR_MTRR_DEF_TYPE: u32 = 0x2ff;
/// MTRRs enabled (bit 11), write-back: with an assigned device, KVM on Intel uses the memory type
/// of the guest's MTRRs, whose reset value makes all RAM uncached.
const MTRR_WRITE_BACK: u64 = 1 << 11 | 6;

/// Segment types of a descriptor.
const CODE_EXECUTE_READ_ACCESSED: u8 = 0xb;
const DATA_READ_WRITE_ACCESSED: u8 = 0x3;
const TSS_BUSY: u8 = 0xb;

fn segment(selector: u16, kind: u8) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_: kind,
        present: 1,
        s: 1,
        g: 1,
        ..Default::default()
    }
}

fn code(long: bool) -> kvm_segment {
    let code = segment(CODE, CODE_EXECUTE_READ_ACCESSED);
    kvm_segment { l: long.into(), db: (!long).into(), ..code }
}

fn data() -> kvm_segment {
    kvm_segment { db: 1, ..segment(DATA, DATA_READ_WRITE_ACCESSED) }
}

fn tss() -> kvm_segment {
    kvm_segment { limit: 0x67, selector: TSS, type_: TSS_BUSY, present: 1, ..Default::default() }
}

/// Encodes a segment as a GDT descriptor (SDM 3A, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let bit = |value: u8, at: u32| u64::from(value) << at;
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let access = bit(segment.type_, 40) | bit(segment.s, 44) | bit(segment.present, 47);
    let mode = bit(segment.l, 53) | bit(segment.db, 54) | bit(segment.g, 55);
    limit & 0xffff | (limit >> 16 & 0xf) << 48 | access | mode
}

/// Sets up the first CPU for `entry`.
pub(crate) fn set_up(
    vcpu: &VcpuFd,
    memory: &GuestMemoryMmap,
    entry: Entry,
    calls: &Calls,
) -> Result<(), Error> {
    let long = matches!(entry, Entry::Long { .. });
    let gdt = [0, 0, descriptor(&code(long)), descriptor(&data()), descriptor(&tss())];
    let bytes: Vec<_> = gdt.iter().flat_map(|descriptor| descriptor.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(GDT))?;

    let mut special = vcpu.get_sregs().map_err(Error::kvm("KVM_GET_SREGS"))?;
    enter(&mut special, entry);
    vcpu.set_sregs(&special).map_err(Error::kvm("KVM_SET_SREGS"))?;
    vcpu.set_regs(&general(entry)).map_err(Error::kvm("KVM_SET_REGS"))?;
    set_msrs(vcpu)?;
    ["KVM_GET_SREGS", "KVM_SET_SREGS", "KVM_SET_REGS", "KVM_SET_MSRS"]
        .iter()
        .for_each(|call| calls.add(call, 1));
    Ok(())
}

fn enter(special: &mut kvm_sregs, entry: Entry) {
    let data = data();
    special.cs = code(matches!(entry, Entry::Long { .. }));
    [special.ds, special.es, special.fs, special.gs, special.ss] = [data; 5];
    special.tr = tss();
    special.gdt = kvm_dtable { base: GDT, limit: 5 * 8 - 1, ..Default::default() };
    special.idt = kvm_dtable::default();
    special.cr0 = CR0_PE | CR0_ET;
    if let Entry::Long { page_tables, .. } = entry {
        special.cr0 |= CR0_PG;
        special.cr3 = page_tables;
        special.cr4 |= CR4_PAE;
        special.efer |= EFER_LME | EFER_LMA;
    }
}

fn general(entry: Entry) -> kvm_regs {
    let registers = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Long { rip, zero_page, .. } => kvm_regs { rip, rsi: zero_page, ..registers },
        Entry::Protected { rip, start_info } => kvm_regs { rip, rbx: start_info, ..registers },
    }
}

fn set_msrs(vcpu: &VcpuFd) -> Result<(), Error> {
    let msr = |index, data| kvm_msr_entry { index, data, ..Default::default() };
    let entries =
        [msr(MSR_MTRR_DEF_TYPE, MTRR_WRITE_BACK), msr(MSR_MISC_ENABLE, MISC_ENABLE_FAST_STRING)];
    let msrs = Msrs::from_entries(&entries)
        .map_err(|e| Error::Vcpu(format!("no room for MSRs: {e:?}")))?;
    // KVM stops at the first MSR that it does not support and returns the number set. Ignore
    // the number: both MSRs are hints for the guest.
    vcpu.set_msrs(&msrs).map_err(Error::kvm("KVM_SET_MSRS"))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_encode_a_flat_model() {
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn only_the_long_entry_enables_paging() {
        let mut special = kvm_sregs::default();
        enter(&mut special, Entry::Protected { rip: 0x100_0000, start_info: 0x7000 });
        assert_eq!((special.cr0 & CR0_PG, special.efer, special.cs.db), (0, 0, 1));
        enter(&mut special, Entry::Long { rip: 0x10_0200, zero_page: 0x7000, page_tables: 0x9000 });
        assert_eq!((special.cr3, special.cs.l, special.efer), (0x9000, 1, EFER_LME | EFER_LMA));
    }
}
