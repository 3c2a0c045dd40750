//! Tests of memory slots on a real /dev/kvm. They do not run if there is none.

use kvm_ioctls::Kvm;
use vm_memory::{GuestAddress, GuestRegionMmap};

use super::*;

fn memory_of(test: &str, numbers: Range<u32>) -> Option<Arc<KvmMemory>> {
    let Ok(vm) = Kvm::new().and_then(|kvm| kvm.create_vm()) else {
        eprintln!("{test} did not run: /dev/kvm does not open here");
        return None;
    };
    Some(Arc::new(KvmMemory::new(Arc::new(vm), numbers, Arc::default())))
}

fn page() -> Arc<GuestRegionMmap<()>> {
    Arc::new(GuestRegionMmap::from_range(GuestAddress(0), 4096, None).unwrap())
}

#[test]
fn a_slot_holds_its_memory_and_frees_its_number() {
    let Some(memory) = memory_of("a_slot_holds_its_memory_and_frees_its_number", 0..1) else {
        return;
    };
    let page = page();
    for _ in 0..3 {
        let mut slot = memory.place(0x1000, page.clone()).unwrap();
        assert_eq!(Arc::strong_count(&page), 2);
        assert_eq!(
            memory.place(0x2000, page.clone()).err().unwrap().raw_os_error(),
            Some(libc::ENOSPC)
        );
        slot.remove().unwrap();
        assert_eq!(Arc::strong_count(&page), 1);
        slot.remove().unwrap();
    }
}

#[test]
fn frees_the_number_of_a_refused_slot() {
    let Some(memory) = memory_of("frees_the_number_of_a_refused_slot", 0..2) else {
        return;
    };
    let _first = memory.place(0x1000, page()).unwrap();
    for _ in 0..3 {
        assert_eq!(memory.place(0x1000, page()).err().unwrap().raw_os_error(), Some(libc::EEXIST));
    }
    let _second = memory.place(0x2000, page()).unwrap();
}

#[test]
fn refuses_overlapping_slots_until_the_other_is_removed() {
    let name = "refuses_overlapping_slots_until_the_other_is_removed";
    let Some(memory) = memory_of(name, 0..8) else {
        return;
    };
    let pages = |count: usize| {
        let range = GuestRegionMmap::<()>::from_range(GuestAddress(0), count * 4096, None);
        Arc::new(range.unwrap())
    };
    let mut ram = memory.place(0x1_0000, pages(16)).unwrap();
    let bars = [(0x0_f000, 2), (0x1_0000, 16), (0x1_8000, 1), (0x1_f000, 2), (0x0_8000, 32)];
    for (gpa, count) in bars {
        let refused = memory.place(gpa, pages(count)).err().unwrap();
        assert_eq!(refused.raw_os_error(), Some(libc::EEXIST), "{gpa:#x}");
    }
    drop(memory.place(0x0_f000, pages(1)).unwrap());
    drop(memory.place(0x2_0000, pages(1)).unwrap());
    ram.remove().unwrap();
    for (gpa, count) in bars {
        drop(memory.place(gpa, pages(count)).unwrap());
    }
}

#[test]
fn refuses_addresses_that_wrap_or_are_unaligned() {
    let Some(memory) = memory_of("refuses_addresses_that_wrap_or_are_unaligned", 0..8) else {
        return;
    };
    assert!(memory.place(0_u64.wrapping_sub(4096), page()).is_err());
    assert!(memory.place(0x1800, page()).is_err(), "unaligned");
}
